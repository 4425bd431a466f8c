"""Translation by prompt: what a model writes, raw and cut at the end of the first line, scored with sacrebleu.

A model that was never taught to stop translates and goes on: raw scores then measure over-generation, cut ones the
translation (BLOOM, section 4.3: 15.5 and 37.2 BLEU of the same outputs). Both are reported, for each of several prompts,
with intervals over sentences, beside a floor that needs no model: the source sentence taken for its own translation.

BLEU is corpus BLEU of sacrebleu (tokenizer ``13a``; ``zh`` and ``char`` into languages that write no spaces), chrF is chrF2.
An interval draws sentences and adds up their statistics anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from sacrebleu.metrics import BLEU, CHRF

from inscape.data.benchmarks import Translated
from inscape.errors import InputError
from inscape.models import LM
from inscape.models.lm import Progress
from inscape.runs.intervals import Interval, bootstrap

ROWS = {
    "id": pl.String, "language": pl.String, "into": pl.String, "prompt": pl.String, "source": pl.String,
    "reference": pl.String, "raw": pl.String, "truncated": pl.String, "stopped": pl.Boolean,
}  # fmt: skip
OUTPUTS = ("raw", "truncated", "source")
METRICS = ("bleu", "chrf")
_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}
_DRAWS = 500


@dataclass(frozen=True)
class Prompt:
    """``text`` names the languages as ``{from_name}`` and ``{to_name}``, and ends where the translation is to begin."""

    name: str
    text: str


PROMPTS = (
    Prompt("labels", "{from_name}: {source}\n{to_name}:"),
    Prompt("meaning", 'The {from_name} sentence "{source}" means in {to_name}:'),
    Prompt("below", "{source}\nThe same in {to_name}:\n"),
)


def translate(
    lm: LM,
    pairs: Sequence[Translated],
    names: dict[str, str],
    *,
    into: str = "en",
    prompts: Sequence[Prompt] = PROMPTS,
    examples: Sequence[Translated] = (),
    max_new_tokens: int = 64,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Greedy translations, one row for each pair and prompt, columns as in ``ROWS``.

    ``truncated`` ends at the first line break after any text. Pairs that do not fit into the model's context with
    any prompt and the new tokens are left out: count rows.

    Args:
        pairs: sentences of one language with their English.
        names: what a language is called in prompts, by code.
        into: ``en``, or the pairs' language to translate from English.
        examples: pairs shown with their translation in the prompt (few-shot), of the same language.
        max_new_tokens: where an output that does not end is cut.

    Raises:
        InputError: no pairs, several languages, a language without a name or that is not the pairs', none that fits.
    """
    languages = {pair.language for pair in (*pairs, *examples)}
    if not pairs or len(languages) != 1:
        raise InputError(
            f"translation of {len(pairs)} pairs in {len(languages)} languages, expected some in one language"
        )
    (language,) = languages
    if into not in ("en", language):
        raise InputError(f"translation of {language} pairs into {into!r}, expected en or {language}")
    if unnamed := [code for code in (language, "en") if code not in names]:
        raise InputError(f"translation: language {unnamed[0]!r} has no name to be called in a prompt")
    codes = (language, "en") if into == "en" else ("en", language)
    asked = []
    for pair in pairs:
        source, reference = _sides(pair, into)
        texts = []
        for prompt in prompts:
            shown = [(*_sides(example, into),) for example in examples]
            lines = [_filled(prompt, a, codes, names) + _gap(prompt) + b + "\n\n" for a, b in shown]
            texts.append("".join(lines) + _filled(prompt, source, codes, names))
        longest = max(map(len, lm.token_ids(texts))) + max_new_tokens
        if lm.context is None or longest <= lm.context:
            asked += [(pair, prompt, text, source, reference) for prompt, text in zip(prompts, texts, strict=True)]
    if not asked:
        raise InputError(f"none of {len(pairs)} sentences fits into the model's context of {lm.context} tokens")
    ids = lm.generate_ids(
        [text for _, _, text, _, _ in asked], max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    rows = [
        {
            "id": pair.id, "language": language, "into": into, "prompt": prompt.name, "source": source,
            "reference": reference, "raw": text.strip(), "truncated": truncated(text), "stopped": len(new) < max_new_tokens,
        }
        for (pair, prompt, _, source, reference), new, text in zip(asked, ids, lm.decode(ids), strict=True)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=ROWS)


def truncated(text: str) -> str:
    """The first line with something in it."""
    return text.strip().split("\n", 1)[0].strip()


def _sides(pair: Translated, into: str) -> tuple[str, str]:
    return (pair.sentence, pair.english) if into == "en" else (pair.english, pair.sentence)


def _gap(prompt: Prompt) -> str:
    return "" if prompt.text.endswith("\n") else " "


def _filled(prompt: Prompt, source: str, codes: tuple[str, str], names: dict[str, str]) -> str:
    return prompt.text.format(source=source, from_name=names[codes[0]], to_name=names[codes[1]])


# -- scores ------------------------------------------------------------------------------------------------------------


def corpus_score(
    hypotheses: Sequence[str], references: Sequence[str], metric: str, into: str, *, seed: int = 0
) -> Interval:
    """BLEU or chrF, 0 to 100, of a corpus, as sacrebleu has it; the interval is over sentences.

    Raises:
        InputError: an unknown metric, no sentences, or lists of different lengths.
    """
    if metric not in METRICS:
        raise InputError(f"translation metric {metric!r}, expected {' or '.join(METRICS)}")
    if not hypotheses or len(hypotheses) != len(references):
        raise InputError(f"{len(hypotheses)} translations of {len(references)} sentences, expected as many, and some")
    scorer: Any = BLEU(tokenize=_TOKENIZERS.get(into.split("-")[0], "13a")) if metric == "bleu" else CHRF()
    # What sacrebleu's own significance tests are made of: counts by sentence, which add up to those of a corpus.
    counts = np.array(scorer._extract_corpus_statistics(list(hypotheses), [list(references)]))

    def score(at: np.ndarray) -> float:
        return float(scorer._compute_score_from_stats(counts[at.astype(int)].sum(0).tolist()).score)

    return bootstrap(np.arange(len(counts)), score, n=_DRAWS, seed=seed)


def scores(rows: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """For each direction, prompt and output (``raw``, ``truncated``, and ``source`` as the floor): BLEU and chrF.

    Columns: ``language, into, prompt, output, metric, sentences, score, lo, hi, stopped, length`` (characters of the
    outputs by those of the references).
    """
    found = []
    for (language, into, prompt), some in rows.group_by("language", "into", "prompt", maintain_order=True):
        length = float(some["reference"].str.len_chars().sum())
        for output in OUTPUTS:
            texts = some[output].to_list()
            for metric in METRICS:
                one = corpus_score(texts, some["reference"].to_list(), metric, str(into), seed=seed)
                found.append(
                    {
                        "language": language, "into": into, "prompt": prompt, "output": output, "metric": metric,
                        "sentences": some.height, "score": one.value, "lo": one.lo, "hi": one.hi,
                        "stopped": some["stopped"].mean(), "length": sum(map(len, texts)) / length,
                    }
                )  # fmt: skip
    return pl.DataFrame(found, infer_schema_length=None).fill_nan(None)


def over_prompts(scored: pl.DataFrame) -> pl.DataFrame:
    """Of `scores`: the median over prompts and their range, by direction, output and metric."""
    return scored.group_by("language", "into", "output", "metric", maintain_order=True).agg(
        pl.col("sentences").max(),
        pl.len().alias("prompts"),
        pl.col("score").median().alias("median"),
        pl.col("score").min().alias("least"),
        pl.col("score").max().alias("most"),
        pl.col("stopped").mean(),
    )
