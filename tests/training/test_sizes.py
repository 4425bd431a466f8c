from typing import get_args

import pytest

from inscape.errors import InputError
from inscape.training.sizes import Recipe, Size, training_of, world_of


@pytest.mark.parametrize("size", get_args(Size))
def test_worlds_and_recipes(size):
    facts = world_of(size, seed=3)
    assert facts.sha256 != world_of(size, seed=4).sha256
    assert len(facts.properties) == 6
    assert all(facts.of(name, split).height >= 3 for name in facts.properties for split in ("train", "dev", "test"))
    assert training_of(size, seed=3).seed == 3


def test_a_world_of_some_properties():
    assert world_of("smoke", 0, ["latitude"]).rows.equals(world_of("smoke", 0).of("latitude"))
    with pytest.raises(InputError, match="area, expected some of birth_year"):
        world_of("smoke", 0, ["birth_year", "area"])


def test_overrides():
    config = training_of("facts", 1, steps=7, width=32, layers=5, device="meta")
    assert (config.optimisation.steps, config.width, config.mlp_width, config.layers) == (7, 32, 96, 5)
    assert config.optimisation.device == "meta"
    unchanged = training_of("facts", 1)
    assert config.mix == unchanged.mix
    assert training_of("facts", 2).model_copy(update={"seed": 1}) == unchanged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("big", 0), "expected one of smoke, demo, standard, facts"),
        (("demo", -1), "seed"),
    ],
)
def test_unknown_recipes_and_bad_values(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        training_of(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cudaa", "cuda:99"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(InputError, match=f"device '{device}'") as caught:
        training_of("smoke", 0, device=device)
    assert "\n" not in str(caught.value)


def test_a_width_that_the_heads_do_not_divide():
    with pytest.raises(InputError, match="width 50: expected a multiple of 2") as caught:
        training_of("demo", 0, width=50)
    assert "\n" not in str(caught.value)


def test_every_recipe_is_named():
    assert set(get_args(Size)) < set(get_args(Recipe))
