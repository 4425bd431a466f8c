"""The scores of a head against scikit-learn, brute force and planted truth (published checks 7 and 9)."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from inscape.attention import scores
from inscape.attention.bigrams import Bigrams
from inscape.attention.scores import bigram_auroc, mean_auroc, roc_curve, top_prefixes, unigram_auroc
from inscape.errors import InputError


def bigrams(table: np.ndarray, unigram: np.ndarray | None = None) -> Bigrams:
    """From counts ``[suffix, prefix]``."""
    suffix, prefix = table.nonzero()
    unigram = np.ones(len(table), np.int64) if unigram is None else unigram.astype(np.int64)
    counts = table[suffix, prefix].astype(np.int64)
    return Bigrams(suffix.astype(np.int32), prefix.astype(np.int32), counts, unigram, 1, int(unigram.sum()), 0)


def by_sklearn(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """nan where a suffix has no prefix or every one."""
    return np.array(
        [
            roc_auc_score(row > 0, value, sample_weight=np.maximum(row, 1))
            if 0 < (row > 0).sum() < len(row)
            else np.nan
            for row, value in zip(table, values, strict=True)
        ]
    )


@pytest.fixture(params=["compared", "binned", "few bins", "as it is"])
def way(request, monkeypatch):
    """Each way of counting alone, on small tables too; with few bins most scores need the binary search."""
    if request.param == "compared":
        monkeypatch.setattr(scores, "FEW", 10**6)
    elif request.param != "as it is":
        monkeypatch.setattr(scores, "FEW", 0)
        if request.param == "few bins":
            monkeypatch.setattr(scores, "BINS", 8)
    return request.param


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("density", [0.005, 0.05, 0.6])
def test_auroc_is_that_of_scikit_learn(way, ties, density):
    rng = np.random.default_rng(1)
    vocab = 203  # no multiple of a group or a strip
    table = (rng.random((vocab, vocab)) < density) * rng.integers(1, 10**6, (vocab, vocab))
    table[5], table[6] = 0, 1  # never seen, and seen after every token
    shape = (vocab, 3)
    q, k = (torch.from_numpy(rng.integers(-1, 2, shape) if ties else rng.normal(size=shape)).float() for _ in range(2))
    found = bigram_auroc(q, k, bigrams(table), rows=33)
    expected = by_sklearn(table, (q @ k.T).numpy())
    assert np.isnan(found[5])
    assert np.isnan(found[6])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_auroc_of_any_scores(data):
    """One row of any float32 numbers: clusters, outliers, signed zeros, ties."""
    vocab = data.draw(st.integers(2, 30))
    size = st.floats(
        2.0**-60, 2.0**100, width=32
    )  # (differences may not be subnormal: a library may have these flushed)
    number = size | size.map(lambda x: -x) | st.sampled_from([0.0, -0.0, 1.0, 1.0000001192092896, 2.0**100])
    values = np.array(data.draw(st.lists(number, min_size=vocab, max_size=vocab)), dtype=np.float32)
    row = np.array(data.draw(st.lists(st.sampled_from([0, 0, 1, 7]), min_size=vocab, max_size=vocab)))
    table = np.zeros((vocab, vocab), np.int64)
    table[0] = row
    q = torch.zeros(vocab, 1)
    q[0] = 1
    k = torch.from_numpy(values)[:, None]
    got = (q @ k.T)[0].numpy()
    positive, negative = row > 0, row == 0
    pairs = (got[positive][:, None] > got[negative]) + (got[positive][:, None] == got[negative]) / 2
    total = row.sum() * negative.sum()
    expected = (row[positive][:, None] * pairs).sum() / total if total else np.nan
    few = scores.FEW
    try:
        for scores.FEW in (0, 10**6):
            np.testing.assert_allclose(bigram_auroc(q, k, bigrams(table))[0], expected, rtol=0, atol=1e-12)
    finally:
        scores.FEW = few


def test_a_weight_is_a_repeated_positive_and_its_scale_is_nothing(way):
    """Check 9."""
    rng = np.random.default_rng(2)
    vocab = 60
    table = (rng.random((vocab, vocab)) < 0.15) * rng.integers(1, 6, (vocab, vocab))
    q, k = torch.randn(vocab, 4), torch.randn(vocab, 4)
    found = bigram_auroc(q, k, bigrams(table))
    for row, value, auroc in zip(table, (q @ k.T).numpy(), found, strict=True):
        repeated = np.concatenate([np.repeat(value, row), value[row == 0]])
        assert auroc == pytest.approx(roc_auc_score(np.arange(len(repeated)) < row.sum(), repeated), abs=1e-12)
    np.testing.assert_array_equal(bigram_auroc(4 * q, k, bigrams(table)), found)
    np.testing.assert_allclose(bigram_auroc(q, k, bigrams(1000 * table)), found, atol=1e-12)
    np.testing.assert_allclose(bigram_auroc(-q, k, bigrams(table)), 1 - found, atol=1e-12)


def test_averages():
    """Check 9: unseen suffixes are apart; the published average counts them as 0."""
    table = np.zeros((4, 4), np.int64)
    table[0, 1], table[2, 3] = 1, 9  # suffix 0 after 1, suffix 2 nine times after 3
    q = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    k = torch.tensor([[0.0], [3.0], [1.0], [2.0]])
    found = bigram_auroc(q, k, bigrams(table))
    np.testing.assert_allclose(found, [1, np.nan, 2 / 3, np.nan])
    assert mean_auroc(found, bigrams(table)) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_auroc(found, bigrams(table), "paper") == pytest.approx((1 + 2 / 3) / 4)
    assert mean_auroc(found, bigrams(table), "frequency") == pytest.approx((1 + 9 * 2 / 3) / 10)
    assert np.isnan(mean_auroc(np.full(4, np.nan), bigrams(table), "paper"))
    with pytest.raises(InputError, match=r"averaging 'mean': expected one of seen, paper, frequency"):
        mean_auroc(found, bigrams(table), "mean")


@pytest.mark.parametrize("norm", [1.0, "drawn"])
def test_planted_bigrams(norm):
    """Check 7: orthonormal embeddings, 40 pairs written in the weights of one head; the other head is random."""
    rng = np.random.default_rng(3)
    vocab, size, pairs = 256, 256, 40
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    embedding = basis * (rng.uniform(0.5, 2, (vocab, 1)) if norm == "drawn" else norm)
    tokens = rng.permutation(vocab)[: 2 * pairs].reshape(pairs, 2)
    table = np.zeros((vocab, vocab), np.int64)
    table[tokens[:, 0], tokens[:, 1]] = rng.integers(1, 50, pairs)
    query, key = np.zeros((size, pairs)), np.zeros((size, pairs))
    for i, (suffix, prefix) in enumerate(tokens):
        query[:, i], key[:, i] = basis[suffix], basis[prefix]
    heads = {"planted": (query, key), "other": (rng.normal(size=(size, pairs)), rng.normal(size=(size, pairs)))}
    mean = {}
    for name, (wq, wk) in heads.items():
        q, k = (torch.from_numpy(embedding @ w).float() for w in (wq, wk))
        mean[name] = mean_auroc(bigram_auroc(q, k, bigrams(table)), bigrams(table))
        if name == "planted":
            top = top_prefixes(q, k, tokens[:, 0].tolist(), 1)
            assert top["prefix"].to_list() == tokens[:, 1].tolist()
    assert mean["planted"] == 1.0
    assert 0.45 <= mean["other"] <= 0.55


def test_unigram_baseline_scores_a_prefix_by_its_count():
    rng = np.random.default_rng(4)
    vocab = 80
    table = (rng.random((vocab, vocab)) < 0.1) * rng.integers(1, 9, (vocab, vocab))
    unigram = rng.integers(0, 5, vocab) + 2**24  # counts that float32 can't tell apart
    expected = by_sklearn(table, np.tile(unigram, (vocab, 1)).astype(np.float64))
    np.testing.assert_allclose(unigram_auroc(bigrams(table, unigram)), expected, rtol=0, atol=1e-12)


def test_top_prefixes_in_the_order_asked_for():
    rng = np.random.default_rng(5)
    q, k = (torch.from_numpy(rng.normal(size=(50, 6))).float() for _ in range(2))
    table = (q @ k.T).numpy()
    top = top_prefixes(q, k, [7, 3, 7, 20], 5, rows=3)
    assert top["suffix"].to_list() == [v for v in (7, 3, 7, 20) for _ in range(5)]
    assert top["rank"].to_list() == [1, 2, 3, 4, 5] * 4
    assert top["prefix"].to_list() == [w for v in (7, 3, 7, 20) for w in np.argsort(-table[v])[:5]]
    np.testing.assert_allclose(
        top["score"], [np.sort(table[v])[::-1][i] for v in (7, 3, 7, 20) for i in range(5)], rtol=1e-5
    )
    assert top_prefixes(q, k, [], 5).columns == ["suffix", "rank", "prefix", "score"]


def test_roc_curve_has_the_exact_area_and_lies_on_the_exact_curve():
    rng = np.random.default_rng(6)
    vocab = 2000
    table = np.zeros((vocab, vocab), np.int64)
    table[9] = (rng.random(vocab) < 0.03) * rng.integers(1, 30, vocab)
    q, k = (torch.from_numpy(rng.integers(-9, 9, (vocab, 2))).float() for _ in range(2))
    value = (k @ q[9]).numpy()
    curve = roc_curve(q, k, 9, bigrams(table), points=100)
    assert len(curve.threshold) <= 100
    assert curve.auroc == pytest.approx(bigram_auroc(q, k, bigrams(table))[9], abs=1e-12)
    assert (curve.false_positive_rate[0], curve.true_positive_rate[0]) == (0, 0)
    assert (curve.false_positive_rate[-1], curve.true_positive_rate[-1]) == (1, 1)
    for x, y, threshold in zip(curve.false_positive_rate, curve.true_positive_rate, curve.threshold, strict=True):
        assert x == pytest.approx((value[table[9] == 0] >= threshold).mean())
        assert y == pytest.approx(table[9][value >= threshold].sum() / table[9].sum())
    assert np.trapezoid(curve.true_positive_rate, curve.false_positive_rate) == pytest.approx(curve.auroc, abs=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_block_and_little_more_is_all_the_memory():
    """Peak of a process of its own (torch's memory is not seen by tracemalloc): far below a table V × V (3.4 GiB here)."""
    code = """
import numpy as np, torch
from pathlib import Path
from inscape.attention.bigrams import Bigrams
from inscape.attention.scores import bigram_auroc
torch.set_num_threads(1)
vocab, rng = 30_000, np.random.default_rng(0)
suffix = np.repeat(np.arange(300), np.arange(300) * 9 + 1)
prefix = np.concatenate([np.sort(rng.permutation(vocab)[: 9 * i + 1]) for i in range(300)])
one = np.ones(len(suffix), np.int64)
b = Bigrams(suffix.astype(np.int32), prefix.astype(np.int32), one, np.ones(vocab, np.int64), 1, vocab, 0)
q, k = torch.randn(vocab, 16), torch.randn(vocab, 16)
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = peak()
bigram_auroc(q, k, b)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    block = scores.ROWS * 30_000 * 4 / 2**20
    assert block / 2 < float(done.stdout) < 256


def test_bad_tables_are_refused():
    table = np.zeros((4, 4), np.int64)
    table[0, 1] = 1
    counts = bigrams(table)
    good = torch.ones(4, 2)
    bad = good.clone()
    bad[2, 1] = torch.nan
    for queries, keys, says in (
        (good, torch.ones(4, 3), r"shapes \[4, 2\] and \[4, 3\]: expected the same"),
        (torch.ones(4), torch.ones(4), r"shapes \[4\] and \[4\]"),
        (torch.ones(0, 2), torch.ones(0, 2), r"shapes \[0, 2\]"),
        (good.double(), good, r"table of queries is torch.float64: expected torch.float32"),
        (good, good.bfloat16(), r"table of keys is torch.bfloat16"),
        (good, bad, r"table of keys is not finite for token 2"),
        (bad.nan_to_num(torch.inf), good, r"table of queries is not finite for token 0|2"),
        (good * 1e30, good * 1e10, r"scores may be as large as 2e\+40"),
        (torch.ones(5, 2), torch.ones(5, 2), r"counted for 4 tokens, the tables have 5.*vocab=5"),
    ):
        with pytest.raises(InputError, match=says):
            bigram_auroc(queries, keys, counts)
    with pytest.raises(InputError, match=r"blocks of 0 rows"):
        bigram_auroc(good, good, counts, rows=0)
    with pytest.raises(InputError, match=r"the top 5 of 4 tokens: expected 1 to 4"):
        top_prefixes(good, good, [0], 5)
    with pytest.raises(InputError, match=r"token -1 is not in the vocabulary: expected 0 to 3"):
        top_prefixes(good, good, [-1], 1)
    with pytest.raises(InputError, match=r"token 4 is not in the vocabulary"):
        roc_curve(good, good, 4, counts)
    with pytest.raises(InputError, match=r"token 1 has 0 prefixes of 4 tokens"):
        roc_curve(good, good, 1, counts)
    with pytest.raises(InputError, match=r"a ROC curve of 1 points"):
        roc_curve(good, good, 0, counts, points=1)
    with pytest.raises(InputError, match=r"counted for 9 tokens"):
        mean_auroc(np.zeros(4), replace(counts, unigram=np.ones(9, np.int64)))
