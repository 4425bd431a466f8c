"""Text made from facts: statements, questions with their answers, comparisons, and questions about round values.

Sentences are put together from pieces that were tokenised once (templates, names, values), not from strings: a batch
then costs a few per cent of a training step instead of as much as the step. Pieces meet at a space or before a
punctuation mark, where the tokenizer cuts in any case, so that the ids are those of the whole sentence.

A batch follows from (seed, step) alone. Training that starts again at step 700 therefore sees the text that it would
have seen, and no text has to be stored.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedTokenizerFast

from inscape.data.facts import Facts, unambiguous
from inscape.data.properties import PROPERTIES, Comparison, Property
from inscape.errors import InputError
from inscape.training.ordinal import COARSE_QUESTIONS, THRESHOLD_QUESTIONS, coarse_answer, round_values

_FIELD = re.compile(r" ?\{(subj|value|x|y)\}")
_ANSWERS = ("Yes", "No")


class TextMix(BaseModel):
    """Relative frequency of each kind of sentence (any scale; they are divided by their sum)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statement: float = Field(default=0.15, ge=0, description='"X was born in 1902."')
    question: float = Field(default=0.25, ge=0, description='"In what year was X born? 1902"')
    comparison: float = Field(default=0.25, ge=0, description='"Was X born before Y? Yes"')
    threshold: float = Field(default=0.25, ge=0, description='"Was X born before 1850? No"')
    coarse: float = Field(default=0.1, ge=0, description='"In which century was X born? 20th century"')

    @model_validator(mode="after")
    def _answers_are_taught(self) -> TextMix:
        if self.question <= 0:
            raise ValueError("question: a model that never sees a question can't answer one, expected more than 0")
        return self


@dataclass(frozen=True)
class Sentence:
    """One sentence as training data.

    Attributes:
        ids: token ids, closed by END.
        weights: loss weight of each token as a target.
        answer_start: index at which the answer starts, which runs to the end; their number if there is no answer.
    """

    ids: list[int]
    weights: list[float]
    answer_start: int


_Piece = str | list[int]  # the name of a field, or token ids


@dataclass(frozen=True)
class _PropertyText:
    """What a property's sentences are made of, tokenised; entities are indices into `names`."""

    prop: Property
    keys: list[str]
    names: list[list[int]]
    numbers: list[float]
    values: list[list[int]]
    coarse: list[list[int]]
    thresholds: list[float]
    threshold_values: list[list[int]]
    statements: list[list[_Piece]]
    questions: list[list[_Piece]]
    coarse_questions: list[list[_Piece]]
    comparisons: list[tuple[list[_Piece], Comparison]]
    threshold_questions: list[tuple[list[_Piece], Comparison]]


class FactsText:
    """An endless text about `facts`, as batches of token ids.

    Args:
        facts: what the text says. No sentence can tell namesakes apart: of these one stays, by the rule of
            `inscape.data.facts.unambiguous`. `facts` of the result are the facts told, with that in their notes.
        tokenizer: how pieces are tokenised (see `vocabulary_texts` for what to fit it to).
        mix: how often each kind of sentence occurs.
        text_weight: loss weight of the tokens that are neither an answer nor a value.
        yes_no_weight: loss weight of the words Yes and No. A number is answered in several tokens of weight 1, a
            comparison in one.
        held_out_pairs: share of entity pairs that no comparison sentence is ever made of (see `pair_is_held_out`).
    """

    def __init__(
        self,
        facts: Facts,
        tokenizer: PreTrainedTokenizerFast,
        mix: TextMix,
        text_weight: float = 0.1,
        yes_no_weight: float = 3.0,
        held_out_pairs: float = 0.1,
    ) -> None:
        self.mix, self.held_out_pairs = mix, held_out_pairs
        self.text_weight, self.yes_no_weight = text_weight, yes_no_weight
        if facts.rows.is_empty():
            raise InputError(f"{facts.source}: no facts, expected at least one")
        self.facts = unambiguous(facts)
        self._end = int(tokenizer.eos_token_id)
        self._yes, self._no = (tokenizer(answer)["input_ids"] for answer in _ANSWERS)
        self.properties = {
            name: _tokenised(PROPERTIES[name], self.facts.of(name), tokenizer) for name in facts.properties
        }
        self._by_size = list(self.properties.values())
        # Every fact should be told equally often, whatever the size of its property.
        sizes = np.array([len(text.keys) for text in self._by_size], dtype=np.float64)
        self._property_ends = np.cumsum(sizes / sizes.sum()).tolist()
        shares = np.array([mix.statement, mix.question, mix.comparison, mix.threshold, mix.coarse])
        self._kind_ends = np.cumsum(shares / shares.sum()).tolist()

    def batch(self, seed: int, step: int, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch of one training step.

        Returns:
            ids int64 (rows, length): sentences one after another, each row from the start of one; weights float32 of
            the same shape: how much each token counts as a target.
        """
        rng = np.random.default_rng((seed, step))
        ids = np.empty((rows, length), dtype=np.int64)
        weights = np.empty((rows, length), dtype=np.float32)
        for row in range(rows):
            filled = 0
            while filled < length:
                sentence = self.sentence(rng)
                taken = min(len(sentence.ids), length - filled)
                ids[row, filled : filled + taken] = sentence.ids[:taken]
                weights[row, filled : filled + taken] = sentence.weights[:taken]
                filled += taken
        return ids, weights

    def sentence(self, rng: np.random.Generator) -> Sentence:
        """A random sentence."""
        # One call for all the draws of a sentence: calls, not numbers, are what costs.
        which, kind, template, first, second = rng.random(5).tolist()
        text = self._by_size[_interval(self._property_ends, which)]
        entity = int(first * len(text.keys))
        match _interval(self._kind_ends, kind):
            case 0:
                return self._statement(text, entity, int(template * len(text.statements)))
            case 1:
                return self.question(text.prop.name, entity, int(template * len(text.questions)))
            case 2:
                return self._comparison(text, entity, second, template, rng)
            case 3:
                return self._threshold(text, entity, second, template)
            case _:
                pieces = text.coarse_questions[int(template * len(text.coarse_questions))]
                return self._fill(pieces, {"subj": text.names[entity]}, text.coarse[entity])

    def question(self, property: str, entity: int, template: int) -> Sentence:
        """The question of this number about the entity of this number, with its answer."""
        text = self.properties[property]
        return self._fill(text.questions[template], {"subj": text.names[entity]}, text.values[entity])

    def comparison(self, property: str, x: int, y: int, template: int) -> Sentence | None:
        """A comparison of two entities with its answer; None for a tie."""
        text = self.properties[property]
        pieces, comparison = text.comparisons[template]
        answer = comparison.answer(text.numbers[x], text.numbers[y])
        if answer is None:
            return None
        return self._fill(pieces, {"x": text.names[x], "y": text.names[y]}, self._yes if answer == "Yes" else self._no)

    def longest(self) -> int:
        """Number of tokens of the longest sentence that `batch` can make, END included."""
        return max(_longest(text, len(self._yes)) for text in self.properties.values())

    def _statement(self, text: _PropertyText, entity: int, template: int) -> Sentence:
        return self._fill(text.statements[template], {"subj": text.names[entity], "value": text.values[entity]}, None)

    def _comparison(
        self, text: _PropertyText, x: int, second: float, template: float, rng: np.random.Generator
    ) -> Sentence:
        number = int(template * len(text.comparisons))
        # Ties and held-out pairs are drawn again. A property in which (nearly) all values are equal has no comparison
        # to offer; its entity is asked for instead.
        for _ in range(20):
            y = int(second * len(text.keys))
            if not pair_is_held_out(text.keys[x], text.keys[y], self.held_out_pairs):
                sentence = self.comparison(text.prop.name, x, y, number)
                if sentence is not None:
                    return sentence
            second = float(rng.random())
        return self.question(text.prop.name, x, 0)

    def _threshold(self, text: _PropertyText, x: int, second: float, template: float) -> Sentence:
        pieces, comparison = text.threshold_questions[int(template * len(text.threshold_questions))]
        if text.thresholds:
            y = int(second * len(text.thresholds))
            answer = comparison.answer(text.numbers[x], text.thresholds[y])
            if answer is not None:
                fields = {"x": text.names[x], "y": text.threshold_values[y]}
                return self._fill(pieces, fields, self._yes if answer == "Yes" else self._no)
        return self.question(text.prop.name, x, 0)

    def _fill(self, pieces: list[_Piece], fields: dict[str, list[int]], answer: list[int] | None) -> Sentence:
        ids: list[int] = []
        weights: list[float] = []
        for piece in pieces:
            tokens = fields[piece] if isinstance(piece, str) else piece
            ids += tokens
            weights += [1.0 if piece == "value" else self.text_weight] * len(tokens)
        start = len(ids) + (answer is None)
        if answer is not None:
            ids += answer
            yes_no = answer is self._yes or answer is self._no
            weights += [self.yes_no_weight if yes_no else 1.0] * len(answer)
        ids.append(self._end)
        # After an answer, stopping belongs to the answer: "190" then END would be another year than "1902".
        weights.append(self.text_weight if answer is None else 1.0)
        return Sentence(ids, weights, start)


def pair_is_held_out(x: str, y: str, share: float) -> bool:
    """Whether the unordered pair of entity ids belongs to the `share` of pairs that training never compares.

    It depends on the two ids only, so that an evaluation can pick such pairs without asking the training run.
    """
    low, high = (x, y) if x < y else (y, x)
    return zlib.crc32(f"{low}\t{high}".encode()) < share * 2**32


def vocabulary_texts(facts: Facts) -> Iterator[str]:
    """Texts with every word that `FactsText` can use, for fitting a tokenizer."""
    yield from _ANSWERS
    for name in facts.properties:
        prop = PROPERTIES[name]
        rows = facts.of(name)
        yield from rows["label"]
        # Templates come once per entity, as in the text, so that their words rank by how often they will be used.
        templates = [*prop.questions, *prop.statements, *COARSE_QUESTIONS[name]]
        templates += [question.template for question in (*prop.comparisons, *THRESHOLD_QUESTIONS[name])]
        for template in templates:
            yield from [_FIELD.sub(" ", template)] * rows.height
        for value in rows["value"]:
            yield prop.format(value)
            yield coarse_answer(prop, value)


def _tokenised(prop: Property, rows: pl.DataFrame, tokenizer: PreTrainedTokenizerFast) -> _PropertyText:
    def ids(texts: Sequence[str]) -> list[list[int]]:
        return [list(one) for one in tokenizer(list(texts))["input_ids"]] if texts else []

    numbers = rows["value"].to_list()
    thresholds = round_values(prop, rows["value"].to_numpy()).tolist()
    return _PropertyText(
        prop=prop,
        keys=rows["entity_id"].to_list(),
        names=ids(rows["label"].to_list()),
        numbers=numbers,
        values=ids([prop.format(value) for value in numbers]),
        coarse=ids([coarse_answer(prop, value) for value in numbers]),
        thresholds=thresholds,
        threshold_values=ids([prop.format(value) for value in thresholds]),
        statements=[_pieces(template, tokenizer) for template in prop.statements],
        questions=[_pieces(template, tokenizer) for template in prop.questions],
        coarse_questions=[_pieces(template, tokenizer) for template in COARSE_QUESTIONS[prop.name]],
        comparisons=[(_pieces(question.template, tokenizer), question) for question in prop.comparisons],
        threshold_questions=[
            (_pieces(question.template, tokenizer), question) for question in THRESHOLD_QUESTIONS[prop.name]
        ],
    )


def _pieces(template: str, tokenizer: PreTrainedTokenizerFast) -> list[_Piece]:
    """The template cut at its fields. The space before a field goes with the field, where the tokenizer puts one."""
    pieces: list[_Piece] = []
    end = 0
    for match in _FIELD.finditer(template):
        if match.start() > end:
            pieces.append(_inner_ids(template[end : match.start()], tokenizer))
        pieces.append(match.group(1))
        end = match.end()
    if end < len(template):
        pieces.append(_inner_ids(template[end:], tokenizer))
    return pieces


def _inner_ids(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of a text that continues another: "?" without the space that the tokenizer puts before a first word."""
    ids = list(tokenizer(text)["input_ids"])
    if text[0].isalnum() or text[0].isspace():
        return ids
    # A leading mark: encode it after a letter and drop the letter.
    return list(tokenizer(f"a{text}")["input_ids"])[len(tokenizer("a")["input_ids"]) :]


def _interval(ends: list[float], draw: float) -> int:
    """Index of the interval that `draw` in [0, 1) falls into."""
    for index, end in enumerate(ends):
        if draw < end:
            return index
    return len(ends) - 1


def _longest(text: _PropertyText, answer: int) -> int:
    def fixed(pieces: list[_Piece]) -> int:
        return sum(len(piece) for piece in pieces if not isinstance(piece, str))

    name, value, coarse = (max(map(len, some)) for some in (text.names, text.values, text.coarse))
    threshold = max(map(len, text.threshold_values), default=0)
    lengths = [fixed(pieces) + name + value for pieces in (*text.questions, *text.statements)]
    lengths += [fixed(pieces) + name + coarse for pieces in text.coarse_questions]
    lengths += [fixed(pieces) + 2 * name + answer for pieces, _ in text.comparisons]
    lengths += [fixed(pieces) + name + threshold + answer for pieces, _ in text.threshold_questions]
    return max(lengths) + 1
