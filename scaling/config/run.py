"""The configuration of one training run, and its identity: a hash of what its numbers depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import ClassVar

import yaml
from pydantic import TypeAdapter, ValidationError

from scaling.analysis.schema import ADDED
from scaling.config import yaml_file
from scaling.errors import UserError
from scaling.models.family import ModelConfig

SCHEMA = 1  # version of the run directory and of the rows; part of every run's identity


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run. `run_id` hashes every field that determines its numbers.

    A ladder's run with `wsd` grows: it is the same run whatever budgets are asked of it, for no
    number of its trunk, and none of another budget, depends on them (`config.schedule`).
    """

    model: ModelConfig
    data_key: str
    role: str  # "lr_sweep" | "ladder" | "single"
    lr: float  # muP base rate
    budgets_steps: tuple[int, ...]  # optimizer steps of each decayed point, increasing
    budgets_macs: tuple[float, ...]  # the nominal budgets that these steps spend
    batch: int = 8  # sequences
    schedule: str = "wsd"
    warmup_steps: int = 50
    cooldown: float = 0.2
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    precision: str = "fp32"
    evals: int = 8
    seed: int = 0
    optimizer: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    schema: int = SCHEMA
    # What does not determine the numbers, or no more of them than the last digits:
    study: str = ""
    data_dir: str = ""
    checkpoint_seconds: float = 30.0
    micro_batch: int | None = None
    recompute: bool = False
    compile: str = "auto"
    parallel: str = "ddp"

    NOT_IDENTITY = (
        "study", "data_dir", "checkpoint_seconds", "micro_batch", "recompute", "compile", "parallel"
    )  # fmt: skip
    # Fields that came later: at these values a run has the name that it had without them.
    ADDED: ClassVar = {name: ADDED[name] for name in ("optimizer", "beta1", "beta2")}
    BUDGETS = ("budgets_steps", "budgets_macs")

    @property
    def grows(self) -> bool:
        """Whether budgets may be added to the run, or taken away, without training it again."""
        return self.schedule == "wsd" and self.role == "ladder"

    @property
    def run_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON of the identity fields."""
        return self._hash(self.BUDGETS if self.grows else ())

    @property
    def fixed_id(self) -> str:
        """The name that versions had for the run whose runs did not grow."""
        return self._hash(())

    def _hash(self, left_out: tuple[str, ...]) -> str:
        fields = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in (*self.NOT_IDENTITY, *left_out)
            and (name not in self.ADDED or value != self.ADDED[name])
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """What a run directory's config.yaml holds; `from_yaml` reads it."""
        fields = dataclasses.asdict(self)
        fields["budgets_steps"] = list(self.budgets_steps)
        fields["budgets_macs"] = list(self.budgets_macs)
        return yaml.safe_dump(fields, sort_keys=False)

    @classmethod
    def from_yaml(cls, path: Path) -> RunConfig:
        """Read back a run directory's config.yaml. Raises UserError when it is not one."""
        if not path.exists():
            raise UserError(f"{path}: no such run configuration")
        try:
            fields, _ = yaml_file.read(path)
            model = ModelConfig(**fields["model"])  # refuses unknown keys, as this class does
            return _RUN.validate_python(dataclasses.asdict(cls(**fields | {"model": model})))
        except (TypeError, KeyError, ValueError) as error:
            said = str(error)
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise UserError(
                f"{path}: not a run configuration of schema {SCHEMA} ({said}); it was written by "
                f"another version or damaged. Remove the run directory to train it again"
            ) from None


_RUN = TypeAdapter(RunConfig)  # the types of its fields, which a dataclass does not hold
