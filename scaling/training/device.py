"""The device that a run works on: precision, compilation, and how fast it can multiply."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
from typing import Any

import torch

from scaling.config.run import RunConfig

# On a CPU, compiled blocks save 2-15% of a step and take about a minute to make: from here on, half
# an hour of one core, a run gains by it.
COMPILE_MACS = 5e13
COMPILE_STEPS = 2500  # of a run that may go on: whether it is compiled cannot depend on how far
GEMM = 8192  # rows and columns of the matrices that measure a peak


def autocast(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """Forward passes in bfloat16, or as they are."""
    if bf16:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def compiles(run: RunConfig, device: torch.device, macs: int) -> bool:
    """Whether to compile a run that spends `macs` training MACs."""
    if run.compile != "auto":
        return run.compile == "on"
    if device.type == "cuda":
        return True
    return macs >= COMPILE_MACS and shutil.which(os.environ.get("CXX", "g++")) is not None


def gemm_peak_macs(device: torch.device) -> float | None:
    """MACs per second of a large bf16 matrix product on a GPU, measured; None on a CPU."""
    if device.type != "cuda":
        return None
    a = torch.randn(GEMM, GEMM, device=device, dtype=torch.bfloat16)
    times_ms: list[float] = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ a
        end.record()
        end.synchronize()
        times_ms.append(start.elapsed_time(end))
    return GEMM**3 / (statistics.median(times_ms[2:]) / 1e3)


def device_name(device: torch.device) -> str:
    """The GPU's name, or how many threads the CPU works with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu x{torch.get_num_threads()}"
