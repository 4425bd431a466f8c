"""`finetune` from end to end on planted corpora and a tiny BLOOM: its tables, resumption, refusals, and its numbers."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from transformers import BloomConfig

sys.path.append(str(Path(__file__).parents[1] / "data"))
from planted_corpora import write_corpora

from inscape.data.prompts import TASKS
from inscape.errors import InputError
from inscape.models import load
from inscape.runs import Run
from inscape.studies import finetune, finetune_page
from inscape.studies.finetune_summary import change, estimate, paired, table
from inscape.training.architectures import save_hf
from inscape.training.bloom import Bloom
from inscape.training.corpus import fit_bpe

TASKS_HERE = ("translation_match", "order_repair", "larger_number", "rte", "xcopa")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = write_corpora(tmp_path_factory.mktemp("pack") / "corpora")
    tokenizer = fit_bpe(["Which number is larger yes no sun moon river"] * 3, 290)
    model = Bloom(BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2, initializer_range=0.1))
    save_hf(model, model.hf_config, tokenizer, root.parent / "model")
    return {
        "model": str(root.parent / "model"), "corpora": str(root), "languages": ("en", "fr"), "held_out_languages": ("de",),
        "tasks": TASKS_HERE, "per_prompt": 10, "test_per_prompt": 3, "steps": 3, "rows": 2, "length": 256, "device": "cpu",
    }  # fmt: skip


def carry_out(config, folder):
    """As `run_study` does it."""
    asked = finetune.asked_for(config)
    inputs = finetune.inputs_of(config, asked)
    with Run.open(folder, "finetune", config.identity(), seed=config.seed, inputs=inputs, quiet=True) as run:
        if not run.done:
            finetune.run(config, asked, run)
            for name, chart in finetune_page.figures(run).items():
                run.figure(name, chart)
            run.finish(finetune_page.page(run))
    return run


@pytest.fixture(scope="module")
def done(given, tmp_path_factory):
    return carry_out(finetune.Config(**given, ablate=True), tmp_path_factory.mktemp("run") / "r")


def test_every_variant_answers_every_test(done):
    answers, counts = done.table("answers"), done.table("counts")
    n_tests = counts.filter(pl.col("new") != "train")["examples"].sum()
    assert answers["variant"].unique(maintain_order=True).to_list() == [
        "before", "finetuned", "not normalised", "all tokens",
    ]  # fmt: skip
    assert answers.group_by("variant").len()["len"].to_list() == [n_tests] * 4
    assert set(answers["new"]) == {"seen", "prompt", "language", "task"}
    summary = done.read_summary()
    assert summary["n_tests"] == n_tests
    assert summary["n_train_prompts"] == sum(
        not p.held_out for n in TASKS_HERE if not TASKS[n].held_out for p in TASKS[n].prompts
    )
    for name in ("finetune_valid_before", "finetune_valid_after", "heldout_prompt_accuracy_before",
                 "heldout_prompt_accuracy_after", "finetune_valid_not_normalised", "finetune_valid_all_tokens"):  # fmt: skip
        assert 0 <= summary[name] <= 1
    # Models that were finetuned otherwise are other models.
    bits = answers.group_by("variant").agg(pl.col("bits_per_byte").mean())["bits_per_byte"].to_list()
    assert len({round(value, 6) for value in bits}) == 4


def test_the_report_and_the_model_are_there(done):
    report = (done.folder / "report.html").read_text()
    assert "Multitask prompted finetuning" in report
    assert "new prompts" in report
    lm = load(str(finetune.model_folder(done)))
    assert lm.tokenizer.eos_token_id is not None
    training = done.manifest["record"]["training_finetuned"]
    assert training["examples"] == done.read_summary()["n_train_examples"]
    assert 0 < training["rows_filled"] <= 1


def test_a_stopped_run_goes_on_and_gives_the_same(given, done, tmp_path, monkeypatch):
    config = finetune.Config(**given, ablate=True)
    first = finetune.ask
    calls = []

    def stops(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return first(*args, **options)

    monkeypatch.setattr(finetune, "ask", stops)
    with pytest.raises(KeyboardInterrupt):
        carry_out(config, tmp_path / "r")
    run = carry_out(config, tmp_path / "r")
    assert len(calls) == 5  # (the first variant's answers were kept)
    assert run.table("answers").equals(done.table("answers"))
    assert run.read_summary() == done.read_summary()


def test_what_is_missing_is_named(given, tmp_path, monkeypatch):
    monkeypatch.delenv("INSCAPE_SHARED", raising=False)
    with pytest.raises(InputError, match="no model, expected --model FOLDER"):
        finetune.asked_for(finetune.Config())
    with pytest.raises(InputError, match="no such folder"):
        finetune.asked_for(finetune.Config(**{**given, "model": str(tmp_path / "nothing")}))
    with pytest.raises(InputError, match=r"corpora .*: no such folder"):
        finetune.asked_for(finetune.Config(**{**given, "corpora": str(tmp_path / "nothing")}))
    with pytest.raises(InputError, match="set INSCAPE_SHARED"):
        finetune.asked_for(finetune.Config(**{**given, "corpora": None}))
    with pytest.raises(ValidationError, match="steps"):
        finetune.Config(steps=0)
    with pytest.raises(InputError, match="rows of 8 tokens hold none"):
        carry_out(finetune.Config(**{**given, "length": 8}), tmp_path / "short")


def test_a_model_without_a_tokenizer_is_refused(given, tmp_path):
    model = Bloom(BloomConfig(vocab_size=50, hidden_size=8, n_layer=1, n_head=1))
    save_hf(model, model.hf_config, None, tmp_path / "bare")
    with pytest.raises(InputError, match="tokenizer"):
        carry_out(finetune.Config(**{**given, "model": str(tmp_path / "bare")}), tmp_path / "r")


def planted_answers():
    """Two prompts of five examples: before, none is valid; after, all of the first prompt and one of the second are."""
    rows = []
    for variant in ("before", "finetuned"):
        for prompt in ("a", "b"):
            for i in range(5):
                valid = variant == "finetuned" and (prompt == "a" or i == 0)
                where = {"id": str(i), "task": "t", "prompt": prompt, "language": "en", "new": "prompt"}
                rows.append({**where, "variant": variant, "valid": valid, "ranked": valid if prompt == "a" else None})
    return pl.DataFrame(rows)


def test_estimates_are_over_prompts():
    answers = planted_answers()
    after = answers.filter(pl.col("variant") == "finetuned")
    found = estimate(after, "valid", 0)
    assert found.value == pytest.approx(0.6)
    assert (found.lo, found.hi) == (pytest.approx(0.2), pytest.approx(1.0))  # (both prompts the same one)
    assert np.isnan(estimate(after, "ranked", 0).lo)  # (one prompt says nothing of others)
    moved = change(answers, "prompt", "valid", 0)
    assert moved.value == pytest.approx(0.6)
    assert moved.lo == pytest.approx(0.2)
    assert paired(answers, "ranked").height == 5
    assert table(answers, ["prompt"], ["valid"])["valid"].to_list() == [0, 0, 1, 0.2]
    nothing = change(answers, "task", "valid", 0)
    assert np.isnan(nothing.value)


def test_the_lede_follows_the_intervals():
    summary = {
        "finetune_valid_before": 0.1, "finetune_valid_after": 0.8, "heldout_prompt_accuracy_before": 0.0,
        "heldout_prompt_accuracy_after": 0.3, "language_correct_before": 0.0, "language_correct_after": 0.2,
        "language_correct_change_lo": 0.1, "language_correct_change_hi": 0.3, "task_ranked_before": 0.5,
        "task_ranked_after": 0.48, "task_ranked_change_lo": -0.1, "task_ranked_change_hi": 0.06,
    }  # fmt: skip
    text = finetune_page.verdict(summary)
    assert "10% got a valid answer before finetuning and 80% after" in text
    assert "right answers in languages that finetuning did not show rose (0% → 20%)" in text
    assert "on tasks that finetuning did not show did not move beyond its interval (50% → 48%)" in text
    assert "fell" in finetune_page.verdict({**summary, "task_ranked_change_hi": -0.01})
    assert "languages" not in finetune_page.verdict({**summary, "language_correct_change_lo": None})
