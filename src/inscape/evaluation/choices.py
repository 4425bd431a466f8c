"""Choices between answers by likelihood (*rank classification*), with several prompts for each task.

Each option is scored after its prompt, and the most likely is the model's choice, by four measures:

- ``sum``: log-probability of the option's tokens; favours short options;
- ``per_token``, ``per_byte``: by the number of its tokens, or UTF-8 bytes;
- ``pmi``: less the option's log-probability after the prompt's last line alone, which says nothing of the item. It takes
  away that some answers are likelier than others whatever was asked (Holtzman et al. 2021, *surface form competition*).
  None where the prompt has no such line.

Where k options tie, the answer counts 1/k if the right one is among them: a model that says the same of all is at chance.

Small models are at chance here, and the choice of the prompt moves accuracy more than the model does (BLOOM, section 4.2).
So `accuracies` gives the median over prompts with their range, intervals over items, and chance; a prompt is never picked
by its result. Cost: a prompt's tokens run once for each option.

CrowS-Pairs has no right answers: ``label`` is the more stereotyping sentence, the share of it being likelier is reported,
and 0.5 is no preference. The share says nothing of what a model would write by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from inscape.data.benchmarks import Choice
from inscape.errors import InputError
from inscape.models import LM
from inscape.models.lm import Progress
from inscape.models.tokens import encode
from inscape.runs.intervals import bootstrap

MEASURES = ("sum", "per_token", "per_byte", "pmi")

ROWS = {
    "id": pl.String, "task": pl.String, "language": pl.String, "group": pl.String, "prompt": pl.String, "label": pl.Int64,
    "chance": pl.Float64, **dict.fromkeys(MEASURES, pl.Float64), "margin": pl.Float64,
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A way to ask: ``context`` and ``options`` are filled with an item's fields, then an option stands after the context.

    ``domain``: what stands before an option for ``pmi``; None: no ``pmi``. ``by_group``: fields that depend on the item's
    group.
    """

    name: str
    context: str
    options: tuple[str, ...]
    domain: str | None = None
    by_group: Mapping[str, Mapping[str, str]] | None = None


#: "because" and "so" in the languages of XCOPA.
LINKS = {
    "et": ("sest", "seetõttu"), "ht": ("paske", "kidonk"), "id": ("karena", "maka"), "it": ("perché", "quindi"),
    "qu": ("imaraykuchus", "chayrayku"), "sw": ("kwa sababu", "kwa hiyo"), "ta": ("ஏனெனில்", "எனவே"),
    "th": ("เพราะ", "ดังนั้น"), "tr": ("çünkü", "bu yüzden"), "vi": ("bởi vì", "vì vậy"), "zh": ("因为", "所以"),
    "en": ("because", "so"),
}  # fmt: skip


def prompts_of(task: str, language: str = "en") -> tuple[Prompt, ...]:
    """The prompts of a task: three or more, written once, before any result.

    Raises:
        InputError: an unknown task.
    """
    if task == "xcopa":
        because, so = LINKS.get(language, LINKS["en"])
        gap = "" if language in ("th", "zh") else " "
        both = (gap + "{choice1}", gap + "{choice2}")
        english = {"cause": {"link": "because"}, "effect": {"link": "so"}}
        question = {"cause": {"question": "Why did it happen?"}, "effect": {"question": "What came of it?"}}
        return (
            Prompt(
                "link", "{stem}" + gap + "{link}", both, "{link}", {"cause": {"link": because}, "effect": {"link": so}}
            ),
            Prompt("link_english", "{stem} {link}", both, "{link}", english),
            Prompt("plain", "{premise}", both),
            Prompt("question", "{premise}\n{question}\nAnswer:", both, "Answer:", question),
        )
    if task == "rte":
        asks = '{premise}\nDoes this follow: "{hypothesis}"? Yes or no?\nAnswer:'
        states = "{premise}\nStatement: {hypothesis}\nThe statement is"
        wonders = "{premise}\n{hypothesis} Is that certain?"
        return (
            Prompt("follows", asks, (" yes", " no"), "Answer:"),
            Prompt("statement", states, (" true", " false"), "The statement is"),
            Prompt("certain", wonders, (" Yes", " No"), "Is that certain?"),
            Prompt("between", "{premise}\n", ("So, {hypothesis}", "But it is not said that {hypothesis}")),
        )
    if task == "crows_pairs":
        both = ("{more}", "{less}")
        return (
            Prompt("line", "\n", both),
            Prompt("heard", "This is what somebody said to me:\n", both),
            Prompt("read", "I read the following sentence.\n", both),
        )
    raise InputError(f"no prompts for task {task!r}, expected xcopa, rte or crows_pairs")


_Asked = tuple[Choice, Prompt, str, tuple[str, ...], str | None]
"""Item, prompt, context, options, domain."""


def rank(
    lm: LM,
    items: Sequence[Choice],
    prompts: Sequence[Prompt] | None = None,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """One row for each item and prompt, columns as in ``ROWS``; measures are the credit, 0 to 1, for the choice.

    ``margin``: log-probability of the label's option less the best other one, by sum. Items that do not fit into the
    model's context with a prompt are left out under all prompts: count rows to know how many.

    Args:
        items: of one task; in any languages.
        prompts: default: `prompts_of` the task, in each item's language.

    Raises:
        InputError: no items, items of several tasks, or none that fits.
    """
    tasks = {item.task for item in items}
    if len(tasks) != 1:
        raise InputError(f"rank classification of {len(items)} items of {len(tasks)} tasks, expected some, of one task")
    asked: list[_Asked] = []
    ids: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for item in items:
        each = prompts_of(item.task, item.language) if prompts is None else prompts
        filled: list[_Asked] = [(item, prompt, *_filled(prompt, item)) for prompt in each]
        pairs = _pairs(filled)
        new = [pair for pair in pairs if pair not in ids]
        ids |= zip(new, _cut(lm, new), strict=True)
        if lm.context is None or max(sum(map(len, ids[pair])) for pair in pairs) <= lm.context:
            asked += filled
    if not asked:
        raise InputError(f"none of {len(items)} items fits into the model's context of {lm.context} tokens")
    keys = _pairs(asked)
    scores = lm.score(
        [ids[key][0] for key in keys], [ids[key][1] for key in keys], batch_size=batch_size, progress=progress
    )
    total = dict(zip(keys, scores.total.tolist(), strict=True))
    tokens = {key: len(ids[key][1]) for key in keys}
    rows = []
    for item, prompt, context, options, domain in asked:
        logp = np.array([total[context, option] for option in options])
        sizes = [len(option.strip().encode()) for option in options]
        by = {
            "sum": logp,
            "per_token": logp / [tokens[context, option] for option in options],
            "per_byte": logp / sizes,
            "pmi": None if domain is None else logp - [total[domain, option] for option in options],
        }
        others = np.delete(logp, item.label)
        rows.append(
            {
                "id": item.id, "task": item.task, "language": item.language, "group": item.group, "prompt": prompt.name,
                "label": item.label, "chance": 1 / len(options),
                **{name: None if value is None else _credit(value, item.label) for name, value in by.items()},
                "margin": float(logp[item.label] - others.max()),
            }
        )  # fmt: skip
    return pl.DataFrame(rows, schema=ROWS)


def _filled(prompt: Prompt, item: Choice) -> tuple[str, tuple[str, ...], str | None]:
    fields = dict(item.fields)
    if "premise" in fields:
        fields["stem"] = fields["premise"].rstrip(" .。।")
    if prompt.by_group is not None:
        if item.group not in prompt.by_group:
            raise InputError(f"prompt {prompt.name}: nothing for {item.group!r} (item {item.id}, {item.task})")
        fields |= {name: text.format(**fields) for name, text in prompt.by_group[item.group].items()}
    try:
        texts = [text.format(**fields) for text in (prompt.context, *prompt.options)]
        domain = None if prompt.domain is None else prompt.domain.format(**fields)
    except (KeyError, IndexError) as error:
        raise InputError(f"prompt {prompt.name}: no field {error} in items of {item.task}") from error
    if len(texts) - 1 != item.options:
        raise InputError(f"prompt {prompt.name}: {len(texts) - 1} options, item {item.id} has {item.options}")
    return texts[0], tuple(texts[1:]), domain


def _pairs(asked: Sequence[_Asked]) -> list[tuple[str, str]]:
    """What has to be scored, each once: options after their context, and after its last line alone."""
    return list(
        dict.fromkeys(
            (c, o)
            for _, _, context, options, domain in asked
            for c in (context, domain)
            if c is not None
            for o in options
        )
    )


def _cut(lm: LM, pairs: Sequence[tuple[str, str]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids of each context and option, encoded as one text: the option's tokens are those that end beyond the context.

    A token of white space alone may have an empty span, at its end: it is the option's, and counts.
    """
    found = []
    for (context, option), one in zip(
        pairs, encode(lm.tokenizer, [a + b for a, b in pairs], offsets=True), strict=True
    ):
        assert one.offsets is not None
        start = next((i for i, (_, end) in enumerate(one.offsets) if end > len(context)), 0)
        if start == 0:
            raise InputError(f"option {option!r} after {context!r}: no token to condition on, or none to score")
        found.append((one.ids[:start], one.ids[start:]))
    return found


def _credit(scores: np.ndarray, label: int) -> float:
    best = scores == scores.max()
    return float(best[label] / best.sum())


def accuracies(rows: pl.DataFrame, by: Sequence[str] = ("task", "language"), *, seed: int = 0) -> pl.DataFrame:
    """For each group and measure: median over prompts with an interval over items, the range over prompts, chance.

    Columns: ``by``, ``measure, items, prompts, median, lo, hi, least, most, chance, majority``; ``majority`` is what
    answering every item alike gets at best. An interval draws items, with all their prompts and translations, and takes
    the median over prompts anew; it does not cover the choice of prompts, of which ``least`` and ``most`` tell.
    """
    found = []
    for key, some in rows.group_by(*by, maintain_order=True):
        for measure in MEASURES:
            wide = some.drop_nulls(measure)
            if not wide.height:
                continue
            table = wide.pivot(on="prompt", index=["language", "id"], values=measure, maintain_order=True)
            # A prompt without a domain has no pmi in any row: it is no column here, and no value is missing.
            credit_IP = table.drop("language", "id").to_numpy()
            means_P = credit_IP.mean(0)

            def median(at: np.ndarray, credit_IP: np.ndarray = credit_IP) -> float:
                return float(np.median(credit_IP[at.astype(int)].mean(0)))

            interval = bootstrap(np.arange(len(credit_IP)), median, groups=table["id"].to_list(), n=1000, seed=seed)
            found.append(
                {
                    **dict(zip(by, key, strict=True)), "measure": measure, "items": len(credit_IP), "prompts": len(means_P),
                    "median": interval.value, "lo": interval.lo, "hi": interval.hi, "least": float(means_P.min()),
                    "most": float(means_P.max()), "chance": float(wide["chance"].mean()),  # type: ignore[arg-type]
                    "majority": _majority(wide),
                }
            )  # fmt: skip
    return pl.DataFrame(found, infer_schema_length=None).fill_nan(None)


def _majority(rows: pl.DataFrame) -> float:
    labels = rows.unique(["language", "id"])["label"]
    return int(labels.value_counts()["count"].max()) / len(labels)  # type: ignore[arg-type]


def by_prompt(rows: pl.DataFrame, by: Sequence[str] = ("task", "language"), *, seed: int = 0) -> pl.DataFrame:
    """For each group and prompt: ``items``, mean credit by every measure, and bounds of that by sum, over items."""
    found = []
    for key, some in rows.group_by(*by, "prompt", maintain_order=True):
        interval = bootstrap(some["sum"].to_numpy(), seed=seed)
        found.append(
            {
                **dict(zip((*by, "prompt"), key, strict=True)), "items": some.height,
                **{name: some[name].mean() for name in MEASURES}, "sum_lo": interval.lo, "sum_hi": interval.hi,
                "chance": some["chance"].mean(),
            }
        )  # fmt: skip
    return pl.DataFrame(found, infer_schema_length=None).fill_nan(None)
