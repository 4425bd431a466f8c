# ruff: noqa: E501 (a prompt stands on one line)
"""Clusters *titles* and *continuation*, from documents: a title for a text, its first sentence, the line that comes next."""

import random

from inscape.data.prompts.sources import Sources, cut, sentences_of
from inscape.data.prompts.task import Prompt, Record, Task


def _titles(sources: Sources, seed: int) -> list[Record]:
    return [
        Record(a.id, a.group, a.language, {"text": cut(" ".join(a.lines[:3])), "title": a.title}, None, a.test)
        for a in sources.articles
    ]


def _first_sentences(sources: Sources, seed: int) -> list[Record]:
    records = []
    for a in sources.articles:
        sentences = sentences_of(" ".join(a.lines[:4]))
        if len(sentences) > 1 and len(sentences[0].encode()) <= 150:
            text = cut(" ".join(a.lines[:4]), len(sentences[0].encode()) + 120)
            records.append(Record(a.id, a.group, a.language, {"text": text, "first": sentences[0]}, None, a.test))
    return records


def _next_lines(sources: Sources, seed: int) -> list[Record]:
    short = [a for a in sources.articles if len(a.lines) > 1 and len(a.lines[1].encode()) <= 180]
    others: dict[tuple[str, bool], list[str]] = {}
    for a in short:
        others.setdefault((a.language, a.test), []).append(a.lines[1])
    records = []
    for a in short:
        rng = random.Random(f"{seed} next {a.id}")
        wrong = rng.choice(others[a.language, a.test])
        if wrong == a.lines[1]:
            continue
        answer = rng.randrange(2)
        first, second = (a.lines[1], wrong) if answer == 0 else (wrong, a.lines[1])
        fields = {"text": cut(a.lines[0], 200), "a": first, "b": second}
        records.append(Record(a.id, a.group, a.language, fields, answer, a.test))
    return records


TASKS = (
    Task("title", "titles", "text", _titles, (
        Prompt("title_give", "Give the text a title.\n{text}\nTitle:", "{title}"),
        Prompt("title_page", "{text}\nThis page is called:", "{title}"),
        Prompt("title_heading", "A heading is missing above these lines: {text}\nHeading:", "{title}", held_out=True),
    )),
    Task("first_sentence", "titles", "span", _first_sentences, (
        Prompt("first_begin", "{text}\nThe text begins with this sentence:", "{first}"),
        Prompt("first_copy", "Copy the first sentence of the text.\nText: {text}\nFirst sentence:", "{first}"),
        Prompt("first_reader", "Text: {text}\nWhat does a reader read first?", "{first}", held_out=True),
    )),
    Task("next_line", "continuation", "choice", _next_lines, (
        Prompt("next_letter", "{text}\nWhich line comes next?\nA: {a}\nB: {b}\nAnswer:", options=("A", "B")),
        Prompt("next_text", "Lines:\n{a}\n{b}\nOne of these lines follows this text: {text}\nIt is:", options=("{a}", "{b}")),
        Prompt("next_plain", "{text}", options=("{a}", "{b}"), held_out=True),
    )),
)  # fmt: skip
