"""Probes find what is planted, find nothing where nothing is, and never see a test sentence in training."""

import dataclasses

import numpy as np
import pytest
from planted import ABSENT, PLANTED, planted_features, planted_treebank
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from inscape.data.treebanks import Treebank
from inscape.errors import InputError
from inscape.probing.baselines import shuffled
from inscape.probing.morphosyntax import probe, probe_layers, sentence_splits
from inscape.probing.scores import best_layer, f1_interval
from inscape.probing.sentences import SentenceStates


def test_planted_is_found_and_absent_is_not(treebank):
    tasks, splits = treebank.presence(), sentence_splits(treebank)
    found = probe(planted_features(treebank), treebank, tasks, splits, representation="planted")
    by_task = {task: found.table().filter(task=task)["f1"].mean() for task in found.tasks}
    assert by_task[PLANTED] > 0.97
    assert by_task[ABSENT] < 0.6
    control = probe(planted_features(treebank), treebank, shuffled(tasks), splits, representation="shuffled")
    assert control.f1 < 0.6
    assert f1_interval(found, minus=control).lo > 0.1


def test_one_strength_equals_scikit_learn_on_the_same_split(treebank):
    tasks, splits = treebank.presence(), sentence_splits(treebank, [5])
    X = planted_features(treebank).astype(np.float64)
    found = probe(X, treebank, tasks, splits, representation="x", strengths=[0.1])
    part = np.array([splits[5][i] for i in treebank.ids])
    X = (X - X[part == "train"].mean(axis=0)) / X[part == "train"].std(axis=0)
    for task in range(2):
        y = tasks.values[:, task]
        theirs = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(X[part == "train"], y[part == "train"])
        for which, ours in (("test", found.table()["f1"][task]), ("dev", found.tested[0].dev_f1[task])):
            expected = f1_score(y[part == which], theirs.predict(X[part == which]), average="weighted")
            assert ours == pytest.approx(expected)


def test_strength_is_chosen_by_f1_on_the_development_sentences(treebank):
    tasks, splits = treebank.presence(), sentence_splits(treebank)

    def run(strengths):
        return probe(planted_features(treebank), treebank, tasks, splits, representation="x", strengths=strengths)

    both, alone = run([1e-4, 1.0]), [run([1e-4]), run([1.0])]
    for nth, tested in enumerate(both.tested):
        dev = np.array([one.tested[nth].dev_f1 for one in alone])
        assert tested.C.tolist() == np.where(dev[1] > dev[0], 1.0, 1e-4).tolist()
        np.testing.assert_array_equal(tested.dev_f1, dev.max(axis=0))
        for task, weak in enumerate(tested.C == 1.0):
            expected = alone[int(weak)].tested[nth].predicted[:, task]
            np.testing.assert_array_equal(tested.predicted[:, task], expected)
    assert len({c for t in both.tested for c in t.C}) == 2


def test_layers_and_their_choice(treebank):
    planted = planted_features(treebank)
    noise = np.random.default_rng(0).normal(size=planted.shape).astype(np.float32)
    states = SentenceStates((0, 2), np.stack([noise, planted]))
    results = probe_layers(states, treebank, treebank.presence(), sentence_splits(treebank), note="step 5")
    assert [(r.layer, r.representation, r.note) for r in results] == [(0, "model", "step 5"), (2, "model", "step 5")]
    assert best_layer(results).layer == 2


def test_splits_hold_all_translations_together():
    one, other = planted_treebank("xx"), planted_treebank("yy", 280)
    splits = sentence_splits([one, other])
    assert set(splits) == {0, 1, 2}
    assert splits[0] != splits[1]
    for split in splits.values():
        assert [sorted(split.values()).count(part) for part in ("train", "dev", "test")] == [180, 60, 60]
    # A language's own missing sentences move no other: the split of the union is what both use.
    assert sentence_splits([other, one]) == splits


def test_bad_input_is_refused(treebank):
    tasks, splits, X = treebank.presence(), sentence_splits(treebank), planted_features(treebank)

    def run(features=X, tasks=tasks, splits=splits):
        return probe(features, treebank, tasks, splits, representation="x")

    with pytest.raises(InputError, match="300 sentences; features are of 299"):
        run(X[1:])
    with pytest.raises(InputError, match="are in no part of the split"):
        run(splits={0: {"s0": "train"}})
    with pytest.raises(InputError, match="none of 300 sentences is in the test part"):
        run(splits={0: {i: ("train", "dev")[int(i[1:]) % 2] for i in treebank.ids}})
    one_answer = np.array([splits[0][i] != "train" for i in treebank.ids])
    with pytest.raises(InputError, match=f"xx {ABSENT} has one answer in all 180 training"):
        run(tasks=dataclasses.replace(tasks, values=np.stack([tasks.values[:, 0], one_answer], axis=1)))
    with pytest.raises(InputError, match="0 sentences"):
        sentence_splits(Treebank("xx", ()))
