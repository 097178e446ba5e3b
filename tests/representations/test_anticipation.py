"""Anticipation end to end: frames, the pyramid, its loss, its answers, the command's tables."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from scaling.errors import UserError
from scaling.representations import anticipation_scenes as scenes
from scaling.representations.anticipation import anticipate
from scaling.study_folder import Study

QUICK = {"steps": 4, "batch": 4, "px": 16, "fast_px": 8}
FEW = {"train": 12, "val": 6}


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"), count=FEW, say=lambda _: None)


def test_a_study_anticipates(study: Path, built_in: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(study, tmp_path / "own"))
    said: list[str] = []
    for given in (QUICK, QUICK | {"frames": 1}):
        out = anticipate(Study(own), built_in, given=given, say=said.append)
    table = pd.read_csv(out)
    print(table.to_string())
    print("\n".join(said))
