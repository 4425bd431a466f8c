"""How many of the facts it was told a model can say: exact answers to questions, right answers to comparisons.

Answers are checked by teacher forcing: greedy decoding produces exactly the right answer if and only if every token of
it, END included, is the most likely one given the right tokens before it. One forward pass replaces generation.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from inscape.training.facts_text import FactsText, Sentence, pair_is_held_out

_ROWS = 256


def question_accuracy(model: PreTrainedModel, text: FactsText, property: str, templates: list[int]) -> float:
    """Share of (entity, question) with the exact right answer, over all entities of the property in the text."""
    entities = range(len(text.properties[property].keys))
    sentences = [text.question(property, entity, template) for template in templates for entity in entities]
    return float(_right(model, sentences).mean())


def comparison_accuracy(
    model: PreTrainedModel, text: FactsText, property: str, *, held_out: bool, sentences: int = 500, seed: int = 0
) -> tuple[float, int]:
    """Share of comparisons answered rightly, and how many were asked (ties excluded; fewer if pairs run out).

    Args:
        held_out: ask about pairs that training never compared, or about the others.
    """
    # A stream of its own: (seed, step) seeds the training text.
    rng = np.random.default_rng((seed, 0, 1))
    entry = text.properties[property]
    asked: list[Sentence] = []
    for _ in range(sentences * 50):
        x, y = (int(i) for i in rng.integers(len(entry.keys), size=2))
        if pair_is_held_out(entry.keys[x], entry.keys[y], text.held_out_pairs) != held_out:
            continue
        sentence = text.comparison(property, x, y, int(rng.integers(len(entry.comparisons))))
        if sentence is not None:
            asked.append(sentence)
        if len(asked) == sentences:
            break
    if not asked:
        return float("nan"), 0
    return float(_right(model, asked).mean()), len(asked)


@torch.no_grad()
def _right(model: PreTrainedModel, sentences: list[Sentence]) -> np.ndarray:
    """bool (sentences,): whether every token of the answer is the model's most likely one."""
    right = np.zeros(len(sentences), dtype=bool)
    # Of like length together: less padding. Padding stands on the right, where causal attention never looks back from.
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index].ids))
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        length = max(len(sentences[index].ids) for index in chosen)
        ids = torch.zeros(len(chosen), length, dtype=torch.long)
        answers = torch.zeros(len(chosen), length, dtype=torch.bool)
        for row, index in enumerate(chosen):
            sentence = sentences[index]
            ids[row, : len(sentence.ids)] = torch.tensor(sentence.ids)
            answers[row, sentence.answer_start : len(sentence.ids)] = True
        hidden = model.base_model(ids, use_cache=False).last_hidden_state[:, :-1]
        hit = torch.ones_like(answers[:, 1:])
        targets = answers[:, 1:]
        hit[targets] = model.get_output_embeddings()(hidden[targets]).argmax(-1) == ids[:, 1:][targets]
        right[chosen] = hit.all(1).numpy()
    return right
