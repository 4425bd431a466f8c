"""Flips of a yes/no answer under an edit of strength alpha (P4's intervention), counted so that noise does not look
like control.

P4 counts a prompt as changed when its first token differs from the unedited one at *any* alpha so far. That saturates
(99.9% for the fitted direction of a toy comparator, up to 39% for a random one) and counts garbage as success. Here a
flip is an answer that became the *valid opposite* of the unedited one, at one alpha, for one class; the paper's count
stands beside it for comparison.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from inscape.errors import InputError
from inscape.subspaces.inputs import vector

YES_NO = {"yes": "no"}


@dataclass(frozen=True)
class Flips:
    """What an alpha sweep did to N answers; shares in 0..1.

    `per_alpha`: `alpha`, `sign` (-1, 0, 1), `n_valid` (prompts whose unedited answer is valid: the denominator of the
    flips), `flip_valid` (became the valid opposite), `flip_from_<a>` for each valid answer a (flips among prompts
    answered a unedited: one sign of alpha can only flip one class), `invalid` (edited answers outside the valid set,
    among all N), `changed` (text differs in any way, among all N), `changed_any_so_far` (P4: differs at this alpha or
    an earlier one in the given order). `per_sign`: for -1 and 1, `best_alpha` and `flip_valid` there,
    `flip_valid_any` (flipped validly at any alpha of that sign). `changed_any`: P4's final count as a share.
    `n_invalid_base`: prompts whose unedited answer was not valid.

    It does not show that the edited axis is the one the model compares by: hold it against equal-norm random
    directions.
    """

    per_alpha: pl.DataFrame
    per_sign: pl.DataFrame
    changed_any: float
    n: int
    n_invalid_base: int


def normalise_answer(text: str) -> str:
    """An answer as compared: no surrounding space or final stop, case folded (" Yes." and "yes" are one answer)."""
    return text.strip().rstrip(".!,").strip().casefold()


def flips(
    base: Sequence[str], edited: Sequence[Sequence[str]], alphas: ArrayLike, opposites: Mapping[str, str] | None = None
) -> Flips:
    """`base` (N) unedited answers, `edited` (A, N) answers at each of `alphas` (A,), as generated.

    `opposites`: valid answers and their opposites, either way round (default yes/no). Answers are normalised before
    they are judged valid; P4's counts compare the texts as they are. InputError on shapes that don't fit or on an
    empty prompt list.
    """
    alpha = vector(alphas, "alphas")
    base_text = np.array(list(base), dtype=object)
    n = len(base_text)
    if n == 0 or len(edited) != len(alpha) or any(len(row) != n for row in edited):
        lengths = sorted({len(row) for row in edited})
        raise InputError(
            f"edited: {len(edited)} rows of {lengths} answers for {len(alpha)} alphas and {n} prompts; "
            "expected one row per alpha"
        )
    if len(np.unique(alpha)) != len(alpha):
        raise InputError("alphas: a value occurs twice; expected each once")
    edited_text = np.array([list(row) for row in edited], dtype=object)
    opposite_of = _both_ways(YES_NO if opposites is None else opposites)
    answers = list(opposite_of)
    base_code, edited_code = _codes(base_text, answers), _codes(edited_text, answers)
    answered = [np.equal(base_code, i) for i in range(len(answers))]
    opposite_code = np.array(
        [answers.index(opposite_of[a]) for a in answers] + [-2]
    )  # entry -1: an invalid answer has none
    valid = base_code >= 0
    flipped_AN = (edited_code == opposite_code[base_code]) & valid
    changed_AN = np.asarray(edited_text != base_text, dtype=bool)
    sign = np.sign(alpha).astype(np.int64)
    per_alpha = pl.DataFrame(
        {
            "alpha": alpha,
            "sign": sign,
            "n_valid": np.full(len(alpha), int(valid.sum())),
            "flip_valid": _share(flipped_AN, valid),
            **{f"flip_from_{a}": _share(flipped_AN, answered[i]) for i, a in enumerate(answers)},
            "invalid": (edited_code < 0).mean(axis=1),
            "changed": changed_AN.mean(axis=1),
            "changed_any_so_far": np.logical_or.accumulate(changed_AN, axis=0).mean(axis=1),
        }
    )
    per_sign = pl.DataFrame(
        [
            _one_sign(side, alpha[sign == side], flipped_AN[sign == side], valid)
            for side in (-1, 1)
            if (sign == side).any()
        ],
        schema={"sign": pl.Int64, "best_alpha": pl.Float64, "flip_valid": pl.Float64, "flip_valid_any": pl.Float64},
    )
    return Flips(per_alpha, per_sign, float(per_alpha["changed_any_so_far"][-1]), n, int((~valid).sum()))


def _one_sign(
    side: int, alpha: NDArray[np.float64], flipped: NDArray[np.bool_], valid: NDArray[np.bool_]
) -> dict[str, float]:
    """The best alpha of one sign (the smallest in size among equals) and what it and any of that sign flip."""
    shares = _share(flipped, valid)
    gentlest_first = np.argsort(np.abs(alpha), kind="stable")
    best = gentlest_first[np.argmax(np.nan_to_num(shares, nan=-1.0)[gentlest_first])]
    any_share = _share(np.logical_or.reduce(flipped, axis=0)[None, :], valid)[0]
    return {
        "sign": side,
        "best_alpha": float(alpha[best]),
        "flip_valid": float(shares[best]),
        "flip_valid_any": float(any_share),
    }


def _both_ways(opposites: Mapping[str, str]) -> dict[str, str]:
    """{normalised answer: its normalised opposite}, closed under reversal; InputError if an answer has two
    opposites.
    """
    closed: dict[str, str] = {}
    for a, b in opposites.items():
        for one, other in ((normalise_answer(a), normalise_answer(b)), (normalise_answer(b), normalise_answer(a))):
            if one == other or closed.get(one, other) != other:
                raise InputError(f"opposites: {one!r} has no single opposite; expected pairs such as yes/no")
            closed[one] = other
    if not closed:
        raise InputError("opposites: empty; expected pairs such as yes/no")
    return closed


def _codes(texts: NDArray[np.object_], answers: list[str]) -> NDArray[np.int64]:
    """Index of each text among the valid answers, -1 for any other; texts of any shape, each distinct one judged
    once.
    """
    code_of = {
        text: answers.index(key) if (key := normalise_answer(text)) in answers else -1 for text in set(texts.ravel())
    }
    return np.array([code_of[text] for text in texts.ravel()], dtype=np.int64).reshape(texts.shape)


def _share(hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of `hits` (A, N) per row among the columns marked; NaN when none is marked."""
    return hits[:, among].mean(axis=1) if among.any() else np.full(len(hits), np.nan)
