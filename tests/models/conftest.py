"""Fixtures of the kernel's tests: one tiny model per family (built once), see ``tiny_models``."""

import os

import pytest

# A name that is no folder must fail at once, not after a search for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tiny_models import NAMES, SEQUENTIAL, tiny

from inscape.models.lm import LM


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def lm(name: str) -> LM:
    return tiny(name)


@pytest.fixture(params=SEQUENTIAL)
def sequential(request: pytest.FixtureRequest) -> str:
    return request.param
