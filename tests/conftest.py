"""Shared fixtures: one thread (tiny models run faster on one), and the shared data folder, skipped by name when absent."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("INSCAPE_SHARED", ROOT.parent / "shared"))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs shared/{name} (set INSCAPE_SHARED)")
    return path


@pytest.fixture(scope="session")
def numeric_facts() -> Path:
    return _shared("data/numeric")


@pytest.fixture(scope="session")
def stories260k() -> Path:
    return _shared("models/stories260K")


@pytest.fixture(scope="session")
def tokenizer_gpt2() -> Path:
    return _shared("models/tokenizer-gpt2")


@pytest.fixture(scope="session")
def tokenizer_neox() -> Path:
    return _shared("models/tokenizer-neox")
