"""Translations: what is asked and cut, and scores against sacrebleu's own."""

import numpy as np
import polars as pl
import pytest
from sacrebleu import corpus_bleu, corpus_chrf

from inscape.data.benchmarks import Translated
from inscape.errors import InputError
from inscape.evaluation.translation import (
    METRICS,
    PROMPTS,
    corpus_score,
    over_prompts,
    scores,
    translate,
    truncated,
)

NAMES = {"de": "German", "en": "English"}
PAIRS = [Translated(f"de/{i}", "de", f"Das Haus {i}.", f"The house {i}.", True) for i in range(3)]


def test_outputs_are_the_models_greedy_ones(bloom):
    rows = translate(bloom, PAIRS, NAMES, max_new_tokens=6, batch_size=4)
    assert rows.height == len(PAIRS) * len(PROMPTS)
    texts = {
        "labels": "German: {}\nEnglish:",
        "meaning": 'The German sentence "{}" means in English:',
        "below": "{}\nThe same in English:\n",
    }
    for row in rows.iter_rows(named=True):
        (ids,) = bloom.generate_ids([texts[row["prompt"]].format(row["source"])], max_new_tokens=6)
        (answer,) = bloom.decode([ids])
        assert row["raw"] == answer.strip()
        assert row["stopped"] == (len(ids) < 6)
    other = translate(bloom, PAIRS[:1], NAMES, into="de", max_new_tokens=2)
    assert (other["source"][0], other["reference"][0]) == ("The house 0.", "Das Haus 0.")


def test_examples_are_shown_before(bloom, monkeypatch):
    asked = []
    monkeypatch.setattr(
        type(bloom), "generate_ids", lambda self, texts, **options: asked.extend(texts) or [[1]] * len(texts)
    )
    translate(bloom, PAIRS[:1], NAMES, prompts=PROMPTS[:1], examples=PAIRS[1:])
    assert asked == [
        "German: Das Haus 1.\nEnglish: The house 1.\n\nGerman: Das Haus 2.\nEnglish: The house 2.\n\n"
        "German: Das Haus 0.\nEnglish:"
    ]


def test_cut_at_the_first_line_with_text():
    assert truncated(" The house.\nGerman: more") == "The house."
    assert truncated("\n\nThe house. \n") == "The house."
    assert truncated(" \n ") == ""


WORDS = ("the", "old", "house", "by", "a", "river", "was", "empty", "because", "nobody", "wanted", "it", "any", "more")


def corpus(n=60, seed=0):
    rng = np.random.default_rng(seed)
    references = [" ".join(rng.choice(WORDS, 8)) for _ in range(n)]
    worse = [
        " ".join(w if rng.random() < 0.8 else "x" for w in text.split()) + " and on" * int(rng.integers(3))
        for text in references
    ]
    return worse, references


def test_scores_are_sacrebleus():
    hypotheses, references = corpus()
    bleu = corpus_score(hypotheses, references, "bleu", "en")
    chrf = corpus_score(hypotheses, references, "chrf", "en")
    assert bleu.value == pytest.approx(corpus_bleu(hypotheses, [references]).score)
    assert chrf.value == pytest.approx(corpus_chrf(hypotheses, [references]).score)
    # The interval against a bootstrap that scores each drawn corpus anew.
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(150):
        at = rng.integers(0, len(references), len(references))
        drawn.append(corpus_bleu([hypotheses[i] for i in at], [[references[i] for i in at]]).score)
    lo, hi = np.quantile(drawn, [0.025, 0.975])
    assert bleu.lo == pytest.approx(lo, abs=0.25 * (hi - lo))
    assert bleu.hi == pytest.approx(hi, abs=0.25 * (hi - lo))


def test_languages_without_spaces_are_cut_into_characters():
    hypotheses, references = ["老房子是空的", "没有人要它"], ["老房子是空白的", "没有人要它"]
    assert corpus_score(hypotheses, references, "bleu", "zh").value == pytest.approx(
        corpus_bleu(hypotheses, [references], tokenize="zh").score
    )
    assert (
        corpus_score(hypotheses, references, "bleu", "zh-Hant").value
        > 2 * corpus_score(hypotheses, references, "bleu", "en").value
    )


def test_tables_hold_raw_and_cut_outputs_apart():
    hypotheses, references = corpus()
    rows = pl.DataFrame(
        [
            {"id": str(i), "language": "de", "into": "en", "prompt": prompt, "source": "das " * 8, "reference": reference,
             "raw": hypothesis + ending, "truncated": hypothesis, "stopped": prompt == "a"}
            for prompt, ending in (("a", ""), ("b", " and so it went on" * 5))
            for i, (hypothesis, reference) in enumerate(zip(hypotheses, references, strict=True))
        ]
    )  # fmt: skip
    table = scores(rows)
    found = {(r["prompt"], r["output"], r["metric"]): r for r in table.iter_rows(named=True)}
    assert found["a", "raw", "bleu"]["score"] == found["b", "truncated", "bleu"]["score"]
    assert found["b", "raw", "bleu"]["score"] < 0.5 * found["b", "truncated", "bleu"]["score"]
    assert found["b", "source", "bleu"]["score"] < 1
    assert found["b", "raw", "chrf"]["length"] > 2
    assert (found["a", "raw", "bleu"]["stopped"], found["b", "raw", "bleu"]["stopped"]) == (1, 0)
    (both,) = over_prompts(table).filter(pl.col("output") == "raw", pl.col("metric") == "bleu").iter_rows(named=True)
    assert both["least"] == found["b", "raw", "bleu"]["score"] < both["median"] < both["most"]


def test_refusals(bloom, gpt2):
    with pytest.raises(InputError, match="translation of 0 pairs"):
        translate(bloom, [], NAMES)
    with pytest.raises(InputError, match="in 2 languages"):
        translate(bloom, [*PAIRS, Translated("fr/0", "fr", "a", "b", True)], NAMES)
    with pytest.raises(InputError, match="of de pairs into 'fr'"):
        translate(bloom, PAIRS, NAMES, into="fr")
    with pytest.raises(InputError, match="language 'de' has no name"):
        translate(bloom, PAIRS, {"en": "English"})
    with pytest.raises(InputError, match="none of 3 sentences fits"):
        translate(gpt2, PAIRS, NAMES, max_new_tokens=64)
    with pytest.raises(InputError, match="metric 'comet', expected bleu or chrf"):
        corpus_score(["a"], ["a"], "comet", "en")
    with pytest.raises(InputError, match="1 translations of 2"):
        corpus_score(["a"], ["a", "b"], METRICS[0], "en")
