# ruff: noqa: E501 (a prompt stands on one line)
"""Cluster *translation*: Tatoeba pairs, both ways. Cluster *matching*: is this a translation of that?"""

import random

from inscape.data.prompts.languages import language_name
from inscape.data.prompts.sources import Pair, Sources
from inscape.data.prompts.task import Prompt, Record, Task

_LONGEST = 200  # bytes of a side


def _short(sources: Sources) -> list[Pair]:
    return [p for p in sources.pairs if max(len(p.sentence.encode()), len(p.english.encode())) <= _LONGEST]


def _pairs(sources: Sources, seed: int) -> list[Record]:
    return [
        Record(
            f"tatoeba/{p.language}/{p.number}", f"tatoeba/{p.english}", p.language,
            {"sentence": p.sentence, "english": p.english, "name": language_name(p.language)}, None, p.test,
        )
        for p in _short(sources)
    ]  # fmt: skip


def _others(pairs: list[Pair]) -> dict[tuple[str, bool], list[Pair]]:
    """Pairs by language and side of the split: wrong answers must not bring test sentences into training."""
    found: dict[tuple[str, bool], list[Pair]] = {}
    for pair in pairs:
        found.setdefault((pair.language, pair.test), []).append(pair)
    return found


def _matches(sources: Sources, seed: int) -> list[Record]:
    pairs = _short(sources)
    others = _others(pairs)
    records = []
    for p in pairs:
        rng = random.Random(f"{seed} match {p.language} {p.number}")
        wrong = rng.choice(others[p.language, p.test]).english
        if wrong == p.english:
            continue
        same = rng.random() < 0.5
        records.append(
            Record(
                f"match/{p.language}/{p.number}", f"tatoeba/{p.english}", p.language,
                {
                    "sentence": p.sentence, "name": language_name(p.language), "candidate": p.english if same else wrong,
                },
                0 if same else 1, p.test,
            )
        )  # fmt: skip
    return records


def _which(sources: Sources, seed: int) -> list[Record]:
    pairs = _short(sources)
    others = _others(pairs)
    records = []
    for p in pairs:
        rng = random.Random(f"{seed} which {p.language} {p.number}")
        wrong = rng.choice(others[p.language, p.test]).english
        if wrong == p.english:
            continue
        answer = rng.randrange(2)
        a, b = (p.english, wrong) if answer == 0 else (wrong, p.english)
        fields = {"sentence": p.sentence, "name": language_name(p.language), "a": a, "b": b}
        records.append(
            Record(f"which/{p.language}/{p.number}", f"tatoeba/{p.english}", p.language, fields, answer, p.test)
        )
    return records


TASKS = (
    Task("to_english", "translation", "text", _pairs, (
        Prompt("to_english_put", "Put this {name} sentence into English.\n{sentence}\nEnglish:", "{english}"),
        Prompt("to_english_labels", "{name}: {sentence}\nEnglish:", "{english}"),
        Prompt("to_english_says", "Someone wrote in {name}: {sentence}\nIn English, they said:", "{english}"),
        Prompt("to_english_reader", "{sentence}\nA reader who knows only English would need this version:", "{english}", held_out=True),
    )),
    Task("from_english", "translation", "text", _pairs, (
        Prompt("from_english_put", "Put this English sentence into {name}.\n{english}\n{name}:", "{sentence}"),
        Prompt("from_english_labels", "English: {english}\n{name}:", "{sentence}"),
        Prompt("from_english_how", "How would a speaker of {name} say the following? {english}\nAnswer:", "{sentence}", held_out=True),
    )),
    Task("translation_match", "matching", "choice", _matches, (
        Prompt("match_same", "{sentence}\n{candidate}\nDo both lines say the same? Answer yes or no.\nAnswer:", options=("yes", "no")),
        Prompt("match_right", "{name}: {sentence}\nEnglish: {candidate}\nIs the translation right? yes or no:", options=("yes", "no")),
        Prompt("match_means", "Somebody claims that \"{sentence}\" means \"{candidate}\". True or false?\nAnswer:", options=("true", "false"), held_out=True),
    )),
    Task("translation_choice", "matching", "choice", _which, (
        Prompt("which_letter", "{sentence}\nWhich line means the same?\nA: {a}\nB: {b}\nAnswer:", options=("A", "B")),
        Prompt("which_text", "Choose the English for the {name} sentence.\n{name}: {sentence}\n- {a}\n- {b}\nEnglish:", options=("{a}", "{b}"), held_out=True),
    )),
)  # fmt: skip
