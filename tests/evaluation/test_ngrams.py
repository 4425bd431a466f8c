"""N-gram models against nltk's Kneser-Ney, against sums to one, and against counts by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.lm import KneserNeyInterpolated
from nltk.lm.smoothing import KneserNey as KneserNey_nltk

from inscape.errors import InputError
from inscape.evaluation.ngrams import KneserNey

V = 6
START = "start"


class Unigram(KneserNey_nltk):
    """nltk's, whose unigram has no uniform part: here it has the same discount as the other orders."""

    def unigram_score(self, word):
        count, total = self._continuation_counts(word)
        return max(count - self.discount, 0) / total + self.discount * len(self.counts.unigrams) / total / V


def reference(documents, order, discount):
    """Fitted on the n-grams that end in a token of a document, start signs before it."""
    padded = [[START] * (order - 1) + list(map(str, d)) for d in documents]
    ends = [(p, i) for p in padded for i in range(order - 1, len(p))]
    grams = [tuple(p[i - k + 1 : i + 1]) for p, i in ends for k in range(1, order + 1)]
    model = KneserNeyInterpolated(order, discount=discount)
    model.estimator = Unigram(model.vocab, model.counts, order, discount)
    model.fit([grams], vocabulary_text=[START, *map(str, range(V))])
    return model


def expected(model, document, order):
    padded = [START] * (order - 1) + list(map(str, document))
    return [
        np.log2(model.unmasked_score(padded[i], tuple(padded[i - order + 1 : i])))
        for i in range(order - 1, len(padded))
    ]


TEXTS = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=12), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS, st.integers(2, 5), st.floats(0.05, 0.95))
def test_equal_to_nltk_seen_and_unseen(train, test, order, discount):
    ours = KneserNey(order, discount).fit(train, V)
    theirs = reference(train, order, discount)
    for document, found in zip([*train, *test], ours.log2_probabilities([*train, *test]), strict=True):
        np.testing.assert_allclose(found, expected(theirs, document, order), atol=1e-9, rtol=0)


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.lists(st.integers(0, V - 1), max_size=7), st.integers(1, 5), st.sampled_from([None, 0.3]))
def test_probabilities_of_all_tokens_sum_to_one(train, context, order, discount):
    model = KneserNey(order, discount).fit(train, V)
    last = [one[-1] for one in model.log2_probabilities([[*context, w] for w in range(V)])]
    assert np.sum(np.exp2(last)) == pytest.approx(1, abs=1e-12)
    assert min(last) > -np.inf


def test_modified_discounts_by_hand():
    # As unigrams: 5 tokens once, 2 twice, 1 three times, 1 four times.
    text = [0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 7, 7, 8, 8, 8, 8]
    model = KneserNey(1).fit([text], 10)
    y = 5 / (5 + 4)
    d1, d2, d3 = 1 - 2 * y * 2 / 5, 2 - 3 * y * 1 / 2, 3 - 4 * y * 1 / 1
    np.testing.assert_allclose(model.discounts_, [[d1, d2, d3]])
    left = (5 * d1 + 2 * d2 + 2 * d3) / 16
    found = np.exp2(model.log2_probabilities([[0, 5, 7, 8, 9]])[0])
    np.testing.assert_allclose(found, np.array([1 - d1, 2 - d2, 3 - d3, 4 - d3, 0]) / 16 + left / 10, rtol=1e-12)


def test_documents_are_apart_and_a_long_memory_pays():
    cycle = np.tile([0, 1, 2, 0, 2, 1], 50)
    train = [cycle, np.array([3, 4, 5])]
    bits = [-KneserNey(order).fit(train, V).log2_probabilities([cycle])[0].mean() for order in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > 1.5
    assert bits[2] < 0.1  # (two tokens say which is next)
    # 3 never follows a 1 of the document before it: as the first token it has the start sign as its context.
    model = KneserNey(2, 0.5).fit(train, V)
    first, after = model.log2_probabilities([[3], [1, 3]])
    assert first[0] > after[1] + 3


def test_batches_and_dtypes_do_not_matter():
    rng = np.random.default_rng(0)
    train = [rng.integers(0, 50, n).astype(np.uint16) for n in (300, 0, 1, 200)]
    model = KneserNey(4).fit(iter(train), 50)
    test = [rng.integers(0, 50, n) for n in (5, 0, 7, 1)]
    together = model.log2_probabilities(test)
    assert [len(one) for one in together] == [5, 0, 7, 1]
    for document, found in zip(test, together, strict=True):
        alone = model.log2_probabilities([document])[0]
        np.testing.assert_array_equal(alone, found)
    assert model.n_tokens_ == 501
    assert model.log2_probabilities([]) == []


@pytest.mark.parametrize(
    ("order", "discount", "documents", "message"),
    [
        (0, None, [[1]], "order 0"),
        (2, 1.0, [[1]], "discount 1.0"),
        (2, None, [], "no token to count"),
        (2, None, [[]], "no token to count"),
        (2, None, [[1], [2, 6]], "document 1 holds token 6, expected ids from 0 to 5"),
        (2, None, [[-1, 2]], "document 0 holds token -1"),
        (2, None, [[0.5]], "document 0 is float64"),
    ],
)
def test_refusals(order, discount, documents, message):
    with pytest.raises(InputError, match=message):
        KneserNey(order, discount).fit(documents, V)


def test_a_token_outside_the_vocabulary_is_refused_when_asked():
    with pytest.raises(InputError, match="holds token 9"):
        KneserNey(2).fit([[1, 2]], V).log2_probabilities([[9]])
