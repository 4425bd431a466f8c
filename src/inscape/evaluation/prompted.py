"""What a model does with prompted examples: does it give a valid answer, stop, give the right one, and expect it?

Each example is asked twice. *Generation* (greedy): the text up to the token that ends it, or up to a limit. *Likelihood*: of
the target and, where there are options, of each option after the input (rank classification).

- ``stopped``: the end of text came before the limit;
- ``valid``: the answer has the form of one. Of options: it is one of them, to the letter. ``words``: the given words in
  some order. ``span``: a part of the input. ``text``: one line that is not empty, and that ended;
- ``correct``: the answer is the target, to the letter (but for white space at its ends);
- ``ranked``: the target has the highest log-probability of the options; ``ranked_per_byte``: per UTF-8 byte, which does not
  favour short options. None without options;
- ``bits_per_byte`` of the target, without the end of text;
- ``chance``: of ``ranked``, one over the number of options.

An answer that never stops is not valid: what a reader would be shown is not an answer. `valid` and `correct` have their
*truncated* forms (``valid_first_line``, ``correct_first_line``), which forgive over-generation after the first line.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl

from inscape.data.prompted import Example, end_id, token_ids
from inscape.errors import InputError
from inscape.models import LM

_SPARE = 4
_LIMIT = 96

SCHEMA = {
    "id": pl.String, "task": pl.String, "cluster": pl.String, "prompt": pl.String, "language": pl.String, "new": pl.String,
    "kind": pl.String, "answer": pl.String, "target": pl.String, "stopped": pl.Boolean, "valid": pl.Boolean,
    "correct": pl.Boolean, "valid_first_line": pl.Boolean, "correct_first_line": pl.Boolean, "ranked": pl.Boolean,
    "ranked_per_byte": pl.Boolean, "chance": pl.Float64, "bits_per_byte": pl.Float64,
}  # fmt: skip

Track = Callable[[Sequence[str], str], Iterator[str]]


def ask(lm: LM, examples: Sequence[Example], *, batch_size: int = 64, track: Track | None = None) -> pl.DataFrame:
    """One row for each example that fits into the model's context, columns as in ``SCHEMA``.

    Generation may go on to twice the longest target of the task and some tokens more. Examples whose input with that, or
    whose input with an option, is longer than the context are left out: count rows to know how many.

    Args:
        track: shows progress over tasks, as `Run.track` does.

    Raises:
        InputError: no tokenizer, no end-of-text token, or no example that fits.
    """
    end = end_id(lm.tokenizer)
    by_task: dict[str, list[Example]] = {}
    for example in examples:
        by_task.setdefault(example.task, []).append(example)
    names = list(by_task)
    rows: list[dict[str, Any]] = []
    for name in names if track is None else track(names, "answers: tasks"):
        rows += _ask_task(lm, by_task[name], end, batch_size)
    if not rows:
        raise InputError(f"none of {len(examples)} examples fits into the model's context of {lm.context} tokens")
    return pl.DataFrame(rows, schema=SCHEMA)


def _ask_task(lm: LM, examples: Sequence[Example], end: int, batch_size: int) -> list[dict[str, Any]]:
    # Each option is a target to score; the target itself first.
    inputs = [token_ids(e.input, e.target, lm.tokenizer)[0] for e in examples]
    scored = [
        [token_ids(e.input, option, lm.tokenizer)[1] for option in (e.target, *(e.options or ()))] for e in examples
    ]
    limit = min(_LIMIT, 2 * max(len(options[0]) for options in scored) + _SPARE)
    room = lm.context
    kept = [
        i for i, ids in enumerate(inputs)
        if room is None or len(ids) + max(limit, *map(len, scored[i])) <= room
    ]  # fmt: skip
    if not kept:
        return []
    generated = lm.generate_ids(
        [inputs[i] for i in kept], max_new_tokens=limit, batch_size=batch_size, eos_token_id=end
    )
    texts = lm.decode(generated)
    pairs = [(inputs[i], option) for i in kept for option in scored[i]]
    logp = iter(lm.score([a for a, _ in pairs], [b for _, b in pairs], batch_size=batch_size).total.tolist())
    rows = []
    for i, new_ids, text in zip(kept, generated, texts, strict=True):
        logps = [next(logp) for _ in scored[i]]
        rows.append(_row(examples[i], text, len(new_ids) < limit, logps))
    return rows


def _row(e: Example, text: str, stopped: bool, logps: Sequence[float]) -> dict[str, Any]:
    target, answer = e.target.strip(), text.strip()
    first = answer.split("\n", 1)[0].strip()
    ranked = per_byte = None
    if e.options is not None:
        sizes = [len(option.encode()) for option in e.options]
        right = e.options.index(e.target)
        ranked = _best(logps[1:]) == right
        per_byte = _best([p / size for p, size in zip(logps[1:], sizes, strict=True)]) == right
    return {
        "id": e.id, "task": e.task, "cluster": e.cluster, "prompt": e.prompt, "language": e.language, "new": e.new,
        "kind": e.kind, "answer": text, "target": e.target, "stopped": stopped,
        "valid": stopped and is_valid(e, answer), "correct": stopped and answer == target,
        "valid_first_line": is_valid(e, first), "correct_first_line": first == target,
        "ranked": ranked, "ranked_per_byte": per_byte, "chance": None if e.options is None else 1 / len(e.options),
        "bits_per_byte": -logps[0] / math.log(2) / len(e.target.encode()),
    }  # fmt: skip


def is_valid(example: Example, answer: str) -> bool:
    """Whether an answer, without white space at its ends, has the form that the task asks for."""
    if example.kind == "choice":
        return answer in {option.strip() for option in example.options or ()}
    if example.kind == "words":
        return Counter(answer.split()) == Counter(example.target.split())
    one_line = bool(answer) and "\n" not in answer
    return one_line and (example.kind == "text" or answer in example.input)


def _best(scores: Sequence[float]) -> int | None:
    """The first place; None where two share it, so that a model that says the same of all is never right."""
    best = max(scores)
    return None if list(scores).count(best) > 1 else list(scores).index(best)
