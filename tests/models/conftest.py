"""Fixtures of the model tests."""

import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """Hugging Face's library: independent implementations."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # mup asks for torchvision, whose wheel may not match torch; transformers does without it.
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    return importlib.import_module("transformers")
