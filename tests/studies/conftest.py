"""One small facts LM for all tests of studies and of the command line, trained once even with several workers."""

import pytest

from inscape.training.facts import cached_facts_lm
from inscape.training.sizes import training_of, world_of


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder that the workers of one test session share (a lock keeps a model from being trained twice)."""
    root = tmp_path_factory.getbasetemp()
    return (root.parent if root.name.startswith("popen-") else root) / "inscape-cache"


@pytest.fixture(autouse=True)
def _cache_in_the_environment(cache, monkeypatch):
    monkeypatch.setenv("INSCAPE_CACHE", str(cache))


@pytest.fixture(scope="session")
def smoke_model(cache):
    """The folder of the smoke-sized LM of the numeric world, seed 0: what a study without a model trains first."""
    return cached_facts_lm(world_of("smoke", 0), training_of("smoke", 0), cache)
