"""Bits of texts against the model's own logits, one sequence at a time; windows; positions; intervals."""

import copy
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

import inscape
from inscape.errors import InputError
from inscape.evaluation.bits import (
    Passage,
    _windows,
    bits_per_byte,
    bits_per_text,
    bits_table,
    ngram_bits,
    passages,
    text_bits,
)
from inscape.evaluation.ngrams import KneserNey

TEXTS = ["The house was old.", "老房子 是空的。", "weil es niemand wollte, because nobody wanted it", "ж́ river", "a"]


def test_bits_are_those_of_the_models_logits(bloom, logp):
    rows = text_bits(bloom, TEXTS, batch_size=3)
    for text, row in zip(TEXTS, rows.iter_rows(named=True), strict=True):
        ids = bloom.tokenizer(text)["input_ids"]
        # The shortest beginning of one token or more that is whole characters.
        skipped = next(i for i in range(1, len(ids) + 1) if "\ufffd" not in bloom.tokenizer.decode(ids[:i]))
        nats = -sum(logp(bloom, ids)[skipped - 1 :])
        rest = text.removeprefix(bloom.tokenizer.decode(ids[:skipped]))
        assert row["bits"] == pytest.approx(nats / math.log(2), rel=1e-5, abs=1e-9)
        assert (row["tokens"], row["bytes"], row["characters"]) == (len(ids) - skipped, len(rest.encode()), len(rest))
    assert rows["tokens"][4] == rows["bytes"][4] == 0  # (one token, nothing before it)


def test_a_character_of_several_tokens_is_not_scored_in_part(bloom):
    (one,) = passages(bloom.tokenizer, ["жa"])
    assert len(bloom.tokenizer("ж")["input_ids"]) == 2
    assert one == Passage(one.ids, 0, 2, 1, 1)


def test_a_start_token_makes_all_of_the_text_count(bloom, logp):
    end = bloom.tokenizer.eos_token_id
    rows = text_bits(bloom, TEXTS, start=end)
    for text, row in zip(TEXTS, rows.iter_rows(named=True), strict=True):
        nats = -sum(logp(bloom, [end, *bloom.tokenizer(text)["input_ids"]]))
        assert row["bits"] == pytest.approx(nats / math.log(2), rel=1e-5)
        assert row["bytes"] == len(text.encode())


def test_a_bos_that_the_tokenizer_adds_is_the_start(bloom):
    tokenizer = copy.deepcopy(bloom.tokenizer)
    bos, end = tokenizer.eos_token, tokenizer.eos_token_id
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, end)]
    )
    added = text_bits(inscape.load(bloom.model, tokenizer), TEXTS)
    np.testing.assert_allclose(added["bits"], text_bits(bloom, TEXTS, start=end)["bits"], rtol=1e-6)
    assert added["bytes"].to_list() == [len(text.encode()) for text in TEXTS]
    # Counts know no BOS: they see the text alone.
    counts = KneserNey(2, 0.5).fit([bloom.tokenizer(TEXTS[0])["input_ids"]], bloom.vocab)
    with_bos = ngram_bits(counts, tokenizer, TEXTS)["bits"].to_list()
    assert with_bos == ngram_bits(counts, bloom.tokenizer, TEXTS, start=end)["bits"].to_list()


@given(st.integers(1, 5), st.integers(2, 60), st.integers(2, 30), st.data())
def test_windows_score_each_token_once(first, length, window, data):
    stride = data.draw(st.integers(1, window - 1))
    one = Passage(tuple(range(max(length, first))), 0, first, 0, 0)
    pieces = list(_windows(one, window, stride))
    assert [t for _, s, b in pieces for t in range(s, b)] == list(range(first, len(one.ids)))
    for number, (a, s, b) in enumerate(pieces):
        assert a < s
        assert b - a <= window
        if number:
            assert s - a >= min(window - stride, s)


def test_long_texts_are_read_in_windows(gpt2, logp):
    text = " ".join(TEXTS[2:3] * 12)
    ids = gpt2.tokenizer(text)["input_ids"]
    assert len(ids) > 2 * 48
    (row,) = text_bits(gpt2, [text], stride=16).iter_rows(named=True)
    nats = -sum(logp(gpt2, ids[:48]))
    scored, end = 48, 64
    while scored < len(ids):
        end = min(end, len(ids))
        nats -= sum(logp(gpt2, ids[end - 48 : end])[-(end - scored) :])
        scored, end = end, end + 16
    assert row["bits"] == pytest.approx(nats / math.log(2), rel=1e-5)
    with pytest.raises(InputError, match="stride 48"):
        text_bits(gpt2, [text], stride=48)
    with pytest.raises(InputError, match="window of 1 "):
        text_bits(gpt2, [text], window=1)


def test_counts_are_scored_on_the_same_tokens(bloom):
    train = [bloom.tokenizer(text)["input_ids"] for text in TEXTS]
    counts = KneserNey(3, 0.5).fit(train, bloom.vocab)
    rows = ngram_bits(counts, bloom.tokenizer, TEXTS)
    model = text_bits(bloom, TEXTS)
    assert rows.drop("bits").equals(model.drop("bits"))
    expected = -counts.log2_probabilities([train[0]])[0][1:].sum()
    assert rows["bits"][0] == pytest.approx(expected)
    assert (rows["bits"][:4] < model["bits"][:4]).all()  # (they have seen the texts)


def test_tables_and_intervals():
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 80, 200)
    rows = pl.DataFrame(
        {"language": ["x", "y"] * 100, "bits": sizes * 2.0 + rng.normal(size=200), "bytes": sizes, "characters": sizes // 2,
         "tokens": sizes // 4}
    )  # fmt: skip
    table = bits_table(rows, ["language"])
    assert table["language"].to_list() == ["x", "y"]
    x = rows.filter(pl.col("language") == "x")
    assert table["bits_per_byte"][0] == pytest.approx(x["bits"].sum() / x["bytes"].sum())
    assert table["bits_per_text"][0] == pytest.approx(x["bits"].mean())
    found = bits_per_byte(rows)
    assert found.lo < 2 < found.hi
    assert found.hi - found.lo < 0.02  # (bits go with bytes: their ratio is known better than their mean)
    assert bits_per_text(rows).hi - bits_per_text(rows).lo > 3
    nothing = bits_table(x.with_columns(pl.lit(0).alias("bytes"), pl.lit(0.0).alias("bits")), ["language"])
    assert nothing["bits_per_byte"][0] is None


def test_refusals(bloom):
    with pytest.raises(InputError, match="text 1 is empty"):
        text_bits(bloom, ["a", " "])
