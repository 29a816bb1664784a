"""What every test may rely on: no network, fixed seeds, and ../shared where it exists."""

from __future__ import annotations

import os

# Read when these libraries are imported, so they come before everything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples every time, however slow or busy the machine.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

# Models this small wait for threads longer than they compute.
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def start_over() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state."""
    start_over()
    return 0


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """What tests share is the same whichever of them asks for it first."""
    if fixturedef.scope != "function":
        start_over()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository, which not every checkout has."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the repository")
    return SHARED


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared") and not SHARED.is_dir():
        pytest.skip("no ../shared beside the repository")
