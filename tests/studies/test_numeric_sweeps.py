"""The sweeps of the numeric studies write what the model writes when every edited prompt is run alone, in full."""

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import inscape
from inscape.data.properties import PROPERTIES
from inscape.models import Window, add
from inscape.runs import Run
from inscape.studies import numeric_comparison, numeric_monotonic
from inscape.studies.numeric_setup import facts_for, hidden_site, inputs_of
from inscape.subspaces.directions import steps


@pytest.fixture
def opened(tmp_path, smoke_model):
    """A study at smoke size whose stages up to the capture are done."""
    runs = []

    def make(module, name, **fields):
        config = module.Config(**{**module.SMOKE, **fields})
        facts = facts_for(config)
        run = Run.open(
            tmp_path / name, name, config.identity(), seed=config.seed, inputs=inputs_of(config, facts), quiet=True
        )
        runs.append(run)
        return module._Study(config, facts, run)

    yield make
    for run in runs:
        run.close()


@pytest.mark.parametrize("per_entity", [False, True])
def test_edited_answers_and_their_nll_are_those_of_each_prompt_alone(per_entity, opened, smoke_model):
    study = opened(numeric_monotonic, "numeric-monotonic", max_new_tokens=5)
    prop, rows, layers, dose = PROPERTIES["birth_year"], study.facts.of("birth_year", "test")[:6], [0, 1], steps(5)
    rng = np.random.default_rng(1)
    shape = (rows.height, 5, study.lm.d_model) if per_entity else (5, study.lm.d_model)
    vectors = 3 * rng.normal(size=shape) / np.sqrt(study.lm.d_model) * np.abs(dose)[:, None]
    table = study.edited(prop, rows, vectors, layers, dose)
    assert table["entity_id"].to_list() == [i for i in rows["entity_id"] for _ in dose]
    assert table["step"].to_list() == [*dose] * rows.height

    lm = inscape.load(smoke_model)
    asked = study.asked(prop, rows["label"].to_list())
    found = iter(table.iter_rows(named=True))
    for i, (prompt, span) in enumerate(zip(asked.prompts, asked.spans, strict=True)):
        for s in range(5):
            vector = torch.from_numpy(vectors[i, s] if per_entity else vectors[s]).float()
            edits = [add(*hidden_site(lm, layer), vector, tokens=Window("mention_last", -2, 1)) for layer in layers]
            ids = lm.generate_ids([prompt], edits=edits, mentions=[span], max_new_tokens=5)
            row = next(found)
            assert row["output"] == lm.decode(ids)[0]
            alone = lm.score(lm.token_ids([prompt]), ids).mean.item() if ids[0] else None
            assert row["nll"] == pytest.approx(-alone, abs=1e-4) if ids[0] else row["nll"] is None
    # The edits do something: else equal answers would say little.
    unedited = table.filter(pl.col("step") == 0).select("entity_id", unedited="output")
    moved = table.join(unedited, on="entity_id").select((pl.col("output") != pl.col("unedited")).mean()).item()
    assert moved > 0.4


def test_turned_answers_are_those_of_each_question_alone(opened, smoke_model):
    study = opened(numeric_comparison, "numeric-comparison", alpha_unit="absolute", alpha_max=60.0)
    study.behave()
    study.fit()
    rows = study.pairs.filter(pl.col("split") == "test")[:8]
    axis = np.random.default_rng(1).normal(size=study.lm.d_model) / np.sqrt(study.lm.d_model)
    lm = inscape.load(smoke_model)
    for which in ("x", "y"):
        table = study.turned(rows, which, 0, axis)
        assert table["pair_id"].to_list() == [i for i in rows["pair_id"] for _ in study.alphas]
        assert table["alpha"].to_list() == [*study.alphas] * rows.height
        expected = []
        for prompt, span in zip(study.prompts(rows), study.spans(rows, which), strict=True):
            for alpha in study.alphas:
                edit = add(*hidden_site(lm, 0), torch.from_numpy(alpha * axis).float(), tokens="mention_last")
                text = lm.generate([prompt], edits=[edit], mentions=[span], max_new_tokens=2)[0]
                expected.append(numeric_comparison.first_word(text))
        assert table["edited"].to_list() == expected
        turned = (table["edited"] != table["answer"]).mean()
        assert 0.1 < turned < 0.9  # else equal answers would say little
    nothing = study.turned(rows[:0], "y", 0, axis)
    assert nothing.is_empty()
    assert nothing.schema == table.schema


def test_the_benchmark_of_the_studies_finds_equal_answers(smoke_model):
    path = Path(__file__).parents[2] / "benchmarks/studies.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_studies", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    own = inscape.LM.rerun
    for name, answers in (("numeric-monotonic", 654), ("numeric-comparison", 350)):
        rows = benchmark.rows_of(name, 1, smoke=True)
        assert [row[1] for row in rows] == [*benchmark.STAGES[name], "all of them"]
        assert rows[-1][-1] == f"0 of {answers}"
        assert all(float(seconds) >= 0 for row in rows for seconds in row[2:4])
    assert inscape.LM.rerun is own
