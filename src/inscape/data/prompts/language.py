# ruff: noqa: E501 (a prompt stands on one line)
"""Cluster *language identification*: which language a Tatoeba sentence is in; named freely, chosen, or confirmed."""

import random

from inscape.data.prompts.languages import language_name
from inscape.data.prompts.sources import Sources
from inscape.data.prompts.task import Prompt, Record, Task


def _names(sources: Sources) -> list[str]:
    return sorted(map(language_name, sources.named))


def _named(sources: Sources, seed: int) -> list[Record]:
    """The options are the languages that have sentences, named in no input: a free answer is held against all of them."""
    names = tuple(_names(sources))
    return [
        Record(
            f"language/{s.language}/{s.number}", f"tatoeba/{s.english}", s.language,
            {"sentence": s.sentence}, names.index(language_name(s.language)), s.test, names,
        )
        for s in sources.sentences
    ]  # fmt: skip


def _chosen(sources: Sources, seed: int) -> list[Record]:
    names = _names(sources)
    records = []
    for s in sources.sentences:
        rng = random.Random(f"{seed} language {s.language} {s.number}")
        name = language_name(s.language)
        wrong = [other for other in names if other != name]
        if not wrong:
            continue
        answer = rng.randrange(2)
        other = rng.choice(wrong)
        a, b = (name, other) if answer == 0 else (other, name)
        records.append(
            Record(
                f"language/{s.language}/{s.number}", f"tatoeba/{s.english}", s.language,
                {"sentence": s.sentence, "a": a, "b": b}, answer, s.test,
            )
        )  # fmt: skip
    return records


def _confirmed(sources: Sources, seed: int) -> list[Record]:
    return [
        Record(
            r.id, r.group, r.language,
            # The first name is the right one in half of the records, so "yes" and "no" are as frequent.
            {"sentence": r.fields["sentence"], "claim": r.fields["a"]}, r.answer, r.test,
        )
        for r in _chosen(sources, seed + 1)
    ]  # fmt: skip


TASKS = (
    Task("language_name", "language identification", "choice", _named, (
        Prompt("language_which", "{sentence}\nWhich language is this?"),
        Prompt("language_label", "Sentence: {sentence}\nLanguage:"),
        Prompt("language_written", "The sentence \"{sentence}\" is written in"),
        Prompt("language_speaker", "{sentence}\nThe person who said this speaks", held_out=True),
    )),
    Task("language_choice", "language identification", "choice", _chosen, (
        Prompt("language_or", "{sentence}\nIs this {a} or {b}? It is", options=("{a}", "{b}")),
        Prompt("language_pick", "Pick the language of the sentence: {a}, {b}.\nSentence: {sentence}\nLanguage:", options=("{a}", "{b}"), held_out=True),
    )),
    Task("language_check", "language identification", "choice", _confirmed, (
        Prompt("language_yes_no", "{sentence}\nIs this sentence in {claim}? Answer yes or no.\nAnswer:", options=("yes", "no")),
    )),
)  # fmt: skip
