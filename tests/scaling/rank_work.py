"""One rank of several: what each process of `test_ranks` does, one scenario after the other."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.checkpoint import StopFlag
from tests.shell import HANGS


class StopAfter(StopFlag):
    """Asks for a stop at the n-th look; 0: never."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        self.looks -= 1
        return self.looks == 0


@dataclass(frozen=True)
class Fault:
    """At the first step one rank raises; the other may be stuck, where no connection tells it."""

    rank: int
    stuck: bool = False

    def arm(self) -> None:
        from scaling.data.shards import TokenData

        original = TokenData.batch

        def batch(data: TokenData, step: int, batch: int, seed: int) -> Any:
            if os.environ["RANK"] == str(self.rank):
                raise RuntimeError("a worm in the apple")
            if self.stuck:
                time.sleep(HANGS)
            return original(data, step, batch, seed)

        TokenData.batch = batch  # type: ignore[method-assign, assignment]


def main(scenarios: list[dict[str, Any]], fault: Fault | None) -> None:
    """Each scenario: {"run_dir", "looks": of this rank's stop flag}; says what came of each."""
    import torch

    from scaling.config.run import RunConfig
    from scaling.training import ranks
    from scaling.training.train import train

    torch.set_num_threads(1)
    # What is stuck shall be ended soon; what is only slow has time to hear of it by itself.
    ranks.GRACE_SECONDS = 1.0 if fault and fault.stuck else HANGS
    rank = int(os.environ["RANK"])
    if fault:
        fault.arm()
    for scenario in scenarios:
        run_dir = Path(scenario["run_dir"])
        stop = StopAfter(scenario["looks"][rank])
        logged: list[str] = []
        try:
            run = RunConfig.from_yaml(run_dir / "config.yaml")
            came: dict[str, Any] = {"rows": train(run, run_dir, stop=stop, log=logged.append)}
        except Exception as error:
            came = {"error": f"{type(error).__name__}: {error}"}
        told = came | {"signal": stop.signal, "logged": logged}
        (run_dir / f"came.{rank}.json").write_text(json.dumps(told))
