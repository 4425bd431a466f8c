"""The multilingual study as a whole: what it refuses before it starts, and (slow) all of it at the smallest size."""

import json
import os
from pathlib import Path

import pytest

from inscape.errors import InputError
from inscape.studies import run_study
from inscape.studies.multilingual_pretraining import inputs_of
from inscape.studies.multilingual_setup import SMOKE, Asked, Config, asked_for

KEYS = (
    "bits_per_byte_en", "bits_seen_mean", "bits_unseen_mean", "bits_unigram_en", "bits_5gram_en",
    "alibi_extrapolation_ratio",
    "finetune_valid_before", "finetune_valid_after", "heldout_prompt_accuracy_before", "heldout_prompt_accuracy_after",
    "probe_f1_en", "probe_f1_random_init", "tokens_per_second", "mfu",
)  # fmt: skip


def _pack(root: Path) -> Path:
    for part in ("pretrain", "eval/pud", "parallel"):
        (root / part).mkdir(parents=True)
    (root / "pretrain" / "en.jsonl.gz").write_bytes(b"one")
    return root


def test_inputs_follow_the_files_and_not_the_place(tmp_path: Path) -> None:
    one, two = _pack(tmp_path / "one"), _pack(tmp_path / "two")
    assert inputs_of(Config(), Asked(one)) == inputs_of(Config(), Asked(two))
    (two / "eval" / "pud" / "en.conllu.gz").write_bytes(b"more")
    assert inputs_of(Config(), Asked(one)) != inputs_of(Config(), Asked(two))


def test_a_folder_that_is_no_pack_is_refused_by_the_part_that_lacks(tmp_path: Path) -> None:
    (tmp_path / "pretrain").mkdir()
    with pytest.raises(InputError, match="no folder eval/pud"):
        asked_for(Config(corpora=str(tmp_path)))


@pytest.mark.slow
def test_all_of_it_at_the_smallest_size(tmp_path: Path) -> None:
    corpora = Path(os.environ.get("INSCAPE_SHARED", Path(__file__).parents[2].parent / "shared")) / "data" / "corpora"
    if not corpora.exists():
        pytest.skip("needs shared/data/corpora (set INSCAPE_SHARED)")
    config = {**SMOKE, "corpora": str(corpora), "threads": 1}
    run = run_study("multilingual-pretraining", config, tmp_path / "run", quiet=True)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert [key for key in KEYS if summary.get(key) is None] == []
    assert summary["bits_seen_mean"] < summary["bits_unseen_mean"]
    assert summary["sentences_not_restored"] == 0
    assert (run.folder / "report.html").exists()
    # A second call finds everything done.
    again = run_study("multilingual-pretraining", config, tmp_path / "run", quiet=True)
    assert again.read_summary() == summary
