"""Bits per byte in the multilingual study: which checkpoints, which texts, and means over languages by brute force."""

import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inscape.errors import InputError
from inscape.runs import RunFolder
from inscape.studies.multilingual_bits import spread, xquad_paragraphs
from inscape.studies.multilingual_bits_summary import summary
from inscape.studies.multilingual_making import fitted_law
from inscape.studies.multilingual_setup import RECIPES, Config


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=60), st.integers(2, 12))
def test_spread_keeps_first_and_last_and_no_more_than_asked(steps: set[int], most: int) -> None:
    found = spread(list(steps), most)
    assert set(found) <= steps
    assert found == sorted(found)
    assert len(found) <= most or len(found) == len(steps)
    assert (found[0], found[-1]) == (min(steps), max(steps))


def test_paragraphs_of_xquad_and_what_is_no_xquad(tmp_path: Path) -> None:
    file = tmp_path / "de.json.gz"
    articles = [{"paragraphs": [{"context": "eins"}, {"context": "zwei"}]}, {"paragraphs": [{"context": "drei"}]}]
    with gzip.open(file, "wt") as stream:
        json.dump({"data": articles}, stream)
    assert list(xquad_paragraphs(file).values()) == ["eins", "zwei", "drei"]
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"de\.json\.gz"):
        xquad_paragraphs(file)
    with gzip.open(file, "wt") as stream:
        stream.write("[]")
    with pytest.raises(InputError, match="not a file of XQuAD"):
        xquad_paragraphs(file)


def _tables(folder: Path) -> RunFolder:
    rng = np.random.default_rng(0)
    series, grams = [], []
    for step in (0, 8):
        for language, seen in (("en", True), ("fr", True), ("ko", False)):
            for text in range(30):
                row = {
                    "text": text,
                    "bytes": int(rng.integers(20, 90)),
                    "source": "PUD",
                    "language": language,
                    "seen": seen,
                }
                row["bits"] = float(row["bytes"] * rng.uniform(2, 3) * (1 if seen else 3))
                series.append({**row, "step": step, "read": step * 100})
                if step == 8:
                    grams += [
                        {**row, "bits": row["bits"] * f, "model": m} for f, m in ((1.5, "unigram"), (0.9, "5-gram"))
                    ]
    losses = [
        {"model": model, "length": length, "window": w, "nats": float(factor * rng.uniform(90, 110)), "targets": 32}
        for model in ("model", "none")
        for length, factor in ((256, 1.0), (512, 1.2 if model == "none" else 0.9))
        for w in range(12)
    ]  # fmt: skip
    (folder / "tables").mkdir()
    tables = {"bits_series": series, "bits_ngrams": grams, "bits_positions": losses}
    for name, rows in tables.items():
        pl.DataFrame(rows).write_parquet(folder / "tables" / f"{name}.parquet")
    return RunFolder(folder, {"stages": {"x": {"files": {f"tables/{name}.parquet": "" for name in tables}}}})


def test_the_summary_is_that_of_the_last_checkpoint_by_brute_force(tmp_path: Path) -> None:
    run = _tables(tmp_path)
    found = summary(run, Config())
    last = run.table("bits_series").filter(pl.col("step") == 8)
    each = {}
    for language in ("en", "fr", "ko"):
        rows = last.filter(pl.col("language") == language)
        each[language] = sum(rows["bits"]) / sum(rows["bytes"])
        assert found[f"bits_per_byte_{language}"] == pytest.approx(each[language])
    assert found["bits_seen_mean"] == pytest.approx((each["en"] + each["fr"]) / 2)
    assert found["bits_unseen_mean"] == pytest.approx(each["ko"])
    assert found["bits_below_unigram_en"] == pytest.approx(0.5 * each["en"])
    assert found["bits_below_5gram_en"] == pytest.approx(-0.1 * each["en"])
    assert found["bits_below_5gram_en_hi"] < 0 < found["bits_below_unigram_en_lo"]
    for key in ("bits_seen_mean", "bits_per_byte_ko", "alibi_extrapolation_ratio", "twin_none_extrapolation_ratio"):
        assert found[f"{key}_lo"] < found[key] < found[f"{key}_hi"]
    assert found["alibi_extrapolation_ratio"] < 1 < found["twin_none_extrapolation_ratio"]


def test_the_law_is_found_again_where_one_was_planted() -> None:
    flops = np.geomspace(1e12, 1e14, 50)
    law = fitted_law(flops, 2.0 + 1.5 * (flops / 1e14) ** -0.35)
    assert (law["floor"], law["a"], law["b"]) == pytest.approx((2.0, 1.5, 0.35), rel=1e-3)
    assert law["rms"] < 1e-6


def test_a_language_can_t_be_read_and_held_out_and_flags_replace_the_recipe() -> None:
    with pytest.raises(ValueError, match="'en' is both"):
        Config(languages=("en", "fr"), held_out=("en",))
    with pytest.raises(ValueError, match="multiple of the heads"):
        Config(width=100, heads=3)
    config = Config(tokens=5000, heads=2)
    assert (config.recipe.tokens, config.recipe.heads) == (5000, 2)
    assert config.recipe.width == RECIPES["standard"].width
    assert config.identity() != Config().identity()
