"""Recipes: sizes of the numeric world, and of the model that is trained on it or on a given facts table.

Every number here was found by trying. What failed, and by how much, is told in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from inscape.data.facts import Facts
from inscape.data.worlds.numeric import NumericWorldSpec, numeric_world
from inscape.errors import InputError
from inscape.models.loading import usable_device
from inscape.training.facts import FactsTrainingConfig
from inscape.training.facts_text import TextMix
from inscape.training.pretraining import OptimisationConfig

Size = Literal["smoke", "demo", "standard"]
Recipe = Literal["smoke", "demo", "standard", "facts"]

#: Ordinal sentences take two thirds of a world's text: they make values comparable, hence readable.
_WORLD_MIX = TextMix(question=0.2, statement=0.1, comparison=0.35, threshold=0.3, coarse=0.05)
#: Seconds of training are enough to remember facts, not to order them.
_SMOKE_MIX = TextMix(question=0.65, statement=0.1, comparison=0.05, threshold=0.2, coarse=0)
#: Thousands of real facts are mostly to be remembered.
_FACTS_MIX = TextMix(question=0.45, statement=0.15, comparison=0.1, threshold=0.2, coarse=0.1)

_WORLDS: dict[Size, NumericWorldSpec] = {
    "smoke": NumericWorldSpec(n_people=60, n_places=40),
    "demo": NumericWorldSpec(n_people=200, n_places=120),
    "standard": NumericWorldSpec(n_people=250, n_places=150),
}

_TRAINING: dict[Recipe, FactsTrainingConfig] = {
    "smoke": FactsTrainingConfig(
        width=48, layers=2, heads=2, mlp_width=144, mix=_SMOKE_MIX, text_weight=0.02,
        optimisation=OptimisationConfig(steps=900, rows=16, warmup_steps=30, learning_rate=5e-3),
    ),
    "demo": FactsTrainingConfig(width=48, mlp_width=144, mix=_WORLD_MIX, optimisation=OptimisationConfig(steps=5000)),
    "standard": FactsTrainingConfig(width=48, mlp_width=144, mix=_WORLD_MIX, optimisation=OptimisationConfig(steps=12_000)),
    "facts": FactsTrainingConfig(
        width=128, mlp_width=384, mix=_FACTS_MIX, text_weight=0.0, optimisation=OptimisationConfig(steps=6000, length=40)
    ),
}  # fmt: skip


def world_of(size: Size, seed: int, properties: Sequence[str] | None = None) -> Facts:
    """The numeric world of a size, with facts of all its properties or of those named.

    Raises:
        InputError: the world knows nothing of a property.
    """
    wanted = _WORLDS[size].properties if properties is None else tuple(properties)
    unknown = [name for name in wanted if name not in _WORLDS[size].properties]
    if unknown or not wanted:
        raise InputError(
            f"numeric world: properties {', '.join(unknown) or 'none'}, expected some of "
            f"{', '.join(_WORLDS[size].properties)}"
        )
    return numeric_world(_WORLDS[size].model_copy(update={"seed": seed, "properties": wanted}))


def training_of(
    recipe: str,
    seed: int,
    *,
    steps: int | None = None,
    width: int | None = None,
    layers: int | None = None,
    device: str = "cpu",
) -> FactsTrainingConfig:
    """How the LM of a recipe is trained; what is given here replaces the recipe's value.

    Raises:
        InputError: there is no such recipe or device, or a value doesn't fit (a width that its heads don't divide, say).
    """
    if recipe not in get_args(Recipe):
        raise InputError(f"recipe {recipe!r}: expected one of {', '.join(get_args(Recipe))}")
    chosen = _TRAINING[recipe].model_dump()  # type: ignore[index]
    chosen["seed"] = seed
    # Here rather than in the training loop, whose source is part of the key of every model trained so far.
    usable_device(device)
    chosen["optimisation"]["device"] = device
    if steps is not None:
        chosen["optimisation"]["steps"] = steps
    if width is not None:
        chosen["width"] = width
        chosen["mlp_width"] = 3 * width
    if layers is not None:
        chosen["layers"] = layers
    try:
        return FactsTrainingConfig.model_validate(chosen)
    except ValueError as error:
        raise InputError(f"recipe {recipe!r}: {_one_line(error)}") from error


def _one_line(error: ValueError) -> str:
    return "; ".join(
        line.strip() for line in str(error).splitlines()[1:] if line.strip() and "errors.pydantic" not in line
    )
