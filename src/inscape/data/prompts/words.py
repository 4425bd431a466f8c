# ruff: noqa: E501 (a prompt stands on one line)
"""Clusters *word order*, *reading*, *cloze* and *counting*, from Tatoeba sentences; and numbers to compare.

Tasks about words take sentences of languages that put spaces between them.
"""

import random
from collections.abc import Iterator

from inscape.data.prompts.sources import Pair, Sources, in_test
from inscape.data.prompts.task import Prompt, Record, Task

_MARKS = '.!?,;:…।؟،"«»“”'
_NO_SPACES = ("zh", "zh-Hant", "ja", "th")
_NUMBERS = 1000


def _with_words(sources: Sources, fewest: int, most: int) -> Iterator[tuple[Pair, list[str]]]:
    for s in sources.sentences:
        words = s.sentence.split()
        if s.language not in _NO_SPACES and fewest <= len(words) <= most:
            yield s, words


def _record(task: str, s: Pair, fields: dict[str, str], answer: int | None = None) -> Record:
    fields = {"sentence": s.sentence, **fields}
    return Record(f"{task}/{s.language}/{s.number}", f"tatoeba/{s.english}", s.language, fields, answer, s.test)


def _bare(word: str) -> str:
    return word.strip(_MARKS)


def _shuffled(words: list[str], rng: random.Random) -> list[str] | None:
    """Another order; None where every order reads the same."""
    if len(set(words)) < 2:
        return None
    mixed = list(words)
    while mixed == words:
        rng.shuffle(mixed)
    return mixed


def _orders(sources: Sources, seed: int) -> list[Record]:
    records = []
    for s, words in _with_words(sources, 3, 7):
        rng = random.Random(f"{seed} order {s.language} {s.number}")
        mixed = _shuffled(words, rng)
        if mixed is None:
            continue
        answer = rng.randrange(2)
        right, wrong = " ".join(words), " ".join(mixed)
        a, b = (right, wrong) if answer == 0 else (wrong, right)
        records.append(_record("order", s, {"right": right, "mixed": wrong, "a": a, "b": b}, answer))
    return records


def _repeats(sources: Sources, seed: int) -> list[Record]:
    return [_record("repeat", s, {}) for s in sources.sentences if len(s.sentence.encode()) <= 120]


def _ends(sources: Sources, seed: int) -> list[Record]:
    found = ((s, _bare(words[0]), _bare(words[-1])) for s, words in _with_words(sources, 2, 12))
    return [_record("ends", s, {"first": first, "last": last}) for s, first, last in found if first and last]


def _vocabulary(sources: Sources, shortest: int) -> dict[tuple[str, bool], list[str]]:
    """Words of sentences, by language and side of the split."""
    known: dict[tuple[str, bool], list[str]] = {}
    for s, words in _with_words(sources, 3, 12):
        known.setdefault((s.language, s.test), []).extend(w for w in map(_bare, words) if len(w) >= shortest)
    return known


def _contains(sources: Sources, seed: int) -> list[Record]:
    known = _vocabulary(sources, 1)
    records = []
    for s, words in _with_words(sources, 3, 12):
        rng = random.Random(f"{seed} contains {s.language} {s.number}")
        here = [word for word in map(_bare, words) if word]
        held = rng.random() < 0.5
        word = rng.choice(here) if held and here else rng.choice(known[s.language, s.test])
        records.append(_record("contains", s, {"word": word}, 0 if word in here else 1))
    return records


def _gaps(sources: Sources, seed: int) -> list[Record]:
    known = _vocabulary(sources, 3)
    records = []
    for s, words in _with_words(sources, 4, 12):
        rng = random.Random(f"{seed} gap {s.language} {s.number}")
        places = [i for i, word in enumerate(words) if len(_bare(word)) >= 3]
        if not places:
            continue
        at = rng.choice(places)
        missing, wrong = _bare(words[at]), rng.choice(known[s.language, s.test])
        if wrong in map(_bare, words):
            continue
        answer = rng.randrange(2)
        a, b = (missing, wrong) if answer == 0 else (wrong, missing)
        gapped = " ".join([*words[:at], words[at].replace(missing, "___"), *words[at + 1 :]])
        records.append(_record("gap", s, {"gapped": gapped, "a": a, "b": b}, answer))
    return records


def _counts(sources: Sources, seed: int) -> list[Record]:
    return [_record("count", s, {}, len(words) - 2) for s, words in _with_words(sources, 2, 9)]


def _numbers(sources: Sources, seed: int) -> list[Record]:
    """Pairs of different numbers below 100, drawn by seed; they belong to no language and stand as English."""
    if "en" not in sources.languages:
        return []
    rng = random.Random(f"{seed} numbers")
    drawn = {tuple(rng.sample(range(100), 2)) for _ in range(_NUMBERS)}
    records = []
    for a, b in sorted(drawn):
        # Both orders of two numbers are one group: one must not give the other away.
        group = f"numbers/{min(a, b)}-{max(a, b)}"
        fields = {"a": str(a), "b": str(b)}
        records.append(Record(f"numbers/{a}-{b}", group, "en", fields, 0 if a > b else 1, in_test(group)))
    return records


_DIGITS = tuple(str(n) for n in range(2, 10))

TASKS = (
    Task("order_repair", "word order", "words", _orders, (
        Prompt("order_put", "Put the words in order: {mixed}\nSentence:", "{right}"),
        Prompt("order_mixed", "These words are mixed up: {mixed}\nIn the right order:", "{right}"),
        Prompt("order_fell", "{mixed}\nThe words fell out of place. The sentence was:", "{right}", held_out=True),
    )),
    Task("order_choice", "word order", "choice", _orders, (
        Prompt("order_letter", "A: {a}\nB: {b}\nWhich line has its words in order?", options=("A", "B")),
        Prompt("order_proper", "One of these is a proper sentence.\n{a}\n{b}\nIt is:", options=("{a}", "{b}"), held_out=True),
    )),
    Task("repeat", "reading", "span", _repeats, (
        Prompt("repeat_again", "{sentence}\nThe same again:", "{sentence}"),
        Prompt("repeat_after", "Repeat after me: {sentence}\nRepeat:", "{sentence}", held_out=True),
    )),
    Task("first_word", "reading", "span", _ends, (
        Prompt("first_word_is", "{sentence}\nThe first word is", "{first}"),
        Prompt("first_word_begins", "With which word does \"{sentence}\" begin?\nWord:", "{first}", held_out=True),
    )),
    Task("last_word", "reading", "span", _ends, (
        Prompt("last_word_is", "{sentence}\nThe last word is", "{last}"),
    )),
    Task("contains", "reading", "choice", _contains, (
        Prompt("contains_occurs", "{sentence}\nDoes the word \"{word}\" occur in the sentence? yes or no:", options=("yes", "no")),
        Prompt("contains_look", "Look for {word} in: {sentence}\nIs it there? Answer yes or no.\nAnswer:", options=("yes", "no")),
        Prompt("contains_part", "Word: {word}\nSentence: {sentence}\nThe word is part of the sentence, true or false?", options=("true", "false"), held_out=True),
    )),
    Task("gap", "cloze", "choice", _gaps, (
        Prompt("gap_fill", "{gapped}\nWhich word fills the gap, {a} or {b}?", options=("{a}", "{b}")),
        Prompt("gap_letter", "{gapped}\nMissing word?\nA: {a}\nB: {b}\nAnswer:", options=("A", "B")),
        Prompt("gap_lost", "A word got lost: {gapped}\nIt was either {a} or {b}. It was", options=("{a}", "{b}"), held_out=True),
    )),
    Task("count_words", "counting", "choice", _counts, (
        Prompt("count_how_many", "{sentence}\nHow many words?", options=_DIGITS),
        Prompt("count_number", "Number of words in \"{sentence}\":", options=_DIGITS, held_out=True),
    )),
    Task("larger_number", "counting", "choice", _numbers, (
        Prompt("larger_which", "Which number is larger, {a} or {b}?", options=("{a}", "{b}")),
        Prompt("larger_of", "Numbers: {a}, {b}. The larger of the two is", options=("{a}", "{b}"), held_out=True),
    )),
)  # fmt: skip
