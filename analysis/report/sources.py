"""What a study's page shows beside what its runs say: all that was read of its folder, as data.

`scaling/study/page_sources.py` reads it; nothing in this package opens the study's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd


class NGrams(Protocol):
    """How often each n-gram of codes that occurs does (of scaling/data/tokens.py)."""

    @property
    def counts(self) -> np.ndarray:
        """One for each n-gram that occurs, falling."""

    @property
    def possible(self) -> float:
        """How many there could be."""

    @property
    def coverage(self) -> float:
        """Share of them that occur."""


Counted = Sequence[Mapping[str, NGrams]]  # of single codes, pairs, triples: by tokenizer
Strip = tuple[str, np.ndarray, np.ndarray]  # source, frames, and the same as their tokens have it


@dataclass(frozen=True, eq=False)
class TokenData:
    """The tokens that the models were trained on."""

    index: dict[str, Any]  # index.json
    manifest: pd.DataFrame | None  # what became of every file: source, path, status, frames, error
    strips: Sequence[Strip] | None  # validation clips before and after the tokenizer
    ngrams: Counted | str  # of the codes; or why they were not counted


@dataclass(frozen=True, eq=False)
class Film:
    """A tracked sequence: frames uint8 (T, H, W, 3), and masks (T, H, W) of each kind of features
    at its best layer, by what made them; the first are the truth."""

    sequence: str
    frames: np.ndarray
    masks: Sequence[tuple[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Tracked:
    """Tracking of one of `quality.DAVIS_KINDS`. rows: one an object, layer and sequence."""

    rows: pd.DataFrame
    films: Sequence[Film] = ()


@dataclass(frozen=True, eq=False)
class Generated:
    """A clip that a model continued. losses: nats, a row a position of a frame, of the clip and of
    what was drawn. png: their frames side by side, where they were kept."""

    losses: pd.DataFrame
    png: bytes | None = None


@dataclass(frozen=True, eq=False)
class Sources:
    """A study's rows and configuration, and what else it holds; None, or empty: it has none."""

    rows: pd.DataFrame
    config_text: str
    tokens: TokenData | None = None
    positions: dict[str, Any] | str | None = None  # a best run's loss by position; or why none
    probes: pd.DataFrame | None = None
    tracked: Sequence[Tracked] = ()
    finetune: pd.DataFrame | None = None
    anticipation: pd.DataFrame | None = None
    variants: pd.DataFrame | None = None
    generated: Sequence[Generated] = ()
    macs: Mapping[str, float] = field(default_factory=dict)  # of a run, every cooldown included
