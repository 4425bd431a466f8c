"""Correlations and tests between languages, against numbers known beforehand; and what is too little to be tested."""

import numpy as np
import pytest
from scipy import stats

from inscape.errors import InputError
from inscape.probing.factors import LANGUAGES, family_test, language_facts, script_test, size_correlations

SCORES = {"en": 0.9, "es": 0.8, "fr": 0.85, "pt": 0.7, "ar": 0.5, "zh": 0.4, "ja": 0.45, "hi": 0.6}


def test_a_score_that_grows_with_the_logarithm_of_size_has_correlation_one():
    sizes = {code: 10 ** (score * 8) for code, score in SCORES.items()}
    pearson, spearman = size_correlations("bytes", SCORES, sizes)
    assert pearson.statistic == pytest.approx(1.0)
    assert spearman.statistic == pytest.approx(1.0)
    assert (pearson.n, pearson.note) == (8, "")
    assert pearson.lo == pytest.approx(1.0)


def test_a_language_without_text_counts_for_the_rank_only():
    sizes = {code: 1000.0 * (nth + 1) for nth, code in enumerate(SCORES)} | {"ja": 0.0}
    pearson, spearman = size_correlations("bytes", SCORES, sizes)
    assert (pearson.n, spearman.n) == (7, 8)
    assert pearson.note == "1 languages of size 0 are left out"
    kept = [code for code in SCORES if code != "ja"]
    expected = stats.pearsonr(np.log([sizes[c] for c in kept]), [SCORES[c] for c in kept])
    assert (pearson.statistic, pearson.p) == pytest.approx((expected.statistic, expected.pvalue))
    expected = stats.spearmanr([sizes[c] for c in SCORES], list(SCORES.values()))
    assert (spearman.statistic, spearman.p) == pytest.approx((expected.statistic, expected.pvalue))


def test_script_and_family():
    script = script_test(SCORES)
    assert script.groups["Latin"] == ("en", "es", "fr", "pt")
    # Every Latin language is above every other: U = 4 × 4, and 2 of the 70 orders are as extreme.
    assert (script.statistic, script.p) == pytest.approx((16.0, 2 / 70))
    family = family_test(SCORES)
    assert family.groups == {
        "Indo-European": ("en", "es", "fr", "pt", "hi"),
        "other families": ("ar", "ja", "zh"),
    }
    one, other = ([SCORES[c] for c in codes] for codes in family.groups.values())
    # With two groups F is the square of Student's t.
    assert family.statistic == pytest.approx(stats.ttest_ind(one, other).statistic ** 2)
    assert family.p < 0.05


def test_too_little_says_so():
    for found in (script_test({"en": 0.5, "ru": 0.4}), family_test({"en": 0.5, "fr": 0.4, "zh": 0.1}), script_test({})):
        assert np.isnan(found.p)
        assert found.note.startswith("not tested")
    for found in size_correlations("tasks", {"en": 0.5, "fr": 0.6, "es": 0.7}, {"en": 1, "fr": 1, "es": 1}):
        assert np.isnan(found.statistic)
        assert "at least 3" in found.note


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="language 'xx'"):
        script_test({"xx": 0.1})
    with pytest.raises(InputError, match="no size of fr"):
        size_correlations("bytes", {"en": 0.5, "fr": 0.6}, {"en": 1.0})
    with pytest.raises(InputError, match="not finite"):
        family_test({"en": float("nan")})
    assert language_facts("hi").script == "Devanagari"
    assert len({one.name for one in LANGUAGES.values()}) == len(LANGUAGES)
