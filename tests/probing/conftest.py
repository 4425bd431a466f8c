"""The kernel's tiny models (``tests/models/tiny_models.py``), and one planted treebank for the tests here."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "models"))

from planted import planted_treebank

from inscape.data.treebanks import Treebank


@pytest.fixture(scope="session")
def treebank() -> Treebank:
    return planted_treebank("xx")
