"""Transfer: a planted direction that two languages share carries over, a shift between them is undone by own units."""

import numpy as np
import pytest
from planted import PLANTED, planted_features, planted_treebank

from inscape.errors import InputError
from inscape.probing.morphosyntax import probe, sentence_splits
from inscape.probing.transfer import transfer

LANGUAGES = ("xx", "yy")


@pytest.fixture(scope="module")
def material():
    treebanks = {language: planted_treebank(language) for language in LANGUAGES}
    tasks = {language: treebank.presence() for language, treebank in treebanks.items()}
    features = {"xx": planted_features(treebanks["xx"]), "yy": planted_features(treebanks["yy"], shift=30.0)}
    return features, treebanks, tasks, sentence_splits(treebanks.values())


def planted_f1(result) -> float:
    return result.table().filter(task=PLANTED)["f1"].mean()


def test_own_units_undo_a_shift_and_the_sources_do_not(material):
    results = {(r.trained_on, r.language, r.note): r for r in transfer(*material)}
    assert len(results) == 8
    assert planted_f1(results["xx", "yy", "own"]) > 0.95
    assert planted_f1(results["xx", "yy", "source"]) < 0.6
    features, treebanks, tasks, splits = material
    alone = probe(features["xx"], treebanks["xx"], tasks["xx"], splits, representation="model")
    for units in ("own", "source"):
        np.testing.assert_array_equal(
            results["xx", "xx", units].tested[2].predicted, alone.tested[2].predicted
        )  # a language to itself is the plain probe


def test_only_shared_tasks_are_tested(material):
    features, treebanks, tasks, splits = material
    few = {"xx": tasks["xx"], "yy": type(tasks["yy"])((PLANTED,), ("feature",), tasks["yy"].values[:, :1])}
    found = {(r.trained_on, r.language): r.tasks for r in transfer(features, treebanks, few, splits, units=["own"])}
    assert found["xx", "yy"] == found["yy", "xx"] == (PLANTED,)
    assert len(found["xx", "xx"]) == 2


def test_a_translation_of_a_training_sentence_is_never_tested(material):
    features, treebanks, tasks, splits = material
    for result in transfer(features, treebanks, tasks, splits, units=["own"]):
        for tested in result.tested:
            assert {splits[tested.seed][i] for i in tested.ids} == {"test"}


def test_bad_input_is_refused(material):
    features, treebanks, tasks, splits = material
    with pytest.raises(InputError, match="unknown units"):
        transfer(features, treebanks, tasks, splits, units=["z"])
    with pytest.raises(InputError, match="features of one model"):
        transfer({**features, "yy": features["yy"][:, 1:]}, treebanks, tasks, splits)
    with pytest.raises(InputError, match="yy has 300 sentences; features are of 299"):
        transfer({**features, "yy": features["yy"][1:]}, treebanks, tasks, splits)
