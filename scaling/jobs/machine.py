"""This machine's cores and GPUs, and independent work on them in threads of one process.

Torch leaves Python's lock while it computes, so threads that each have one core keep all of them
busy; and they end with the process, however it is killed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """CUDA devices that this process may use, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [d.strip() for d in chosen.split(",") if d.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [str(k) for k, line in enumerate(lines) if line.startswith("GPU ")]


def computes_in_bf16() -> bool:
    """Whether torch finds a GPU for bf16. Its import takes seconds: only where there may be one."""
    if "torch" not in sys.modules and _surely_no_cuda():
        return False
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _surely_no_cuda() -> bool:
    """Torch is built without it, or (Linux) there is no driver's library for it to load."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    build = runpy.run_path(str(Path(torch.origin).with_name("version.py")))
    if build.get("hip") is not None:  # ROCm answers by the same names
        return False
    if build.get("cuda") is None:
        return True
    if sys.platform != "linux":
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


def threads_at_once(count: int) -> int:
    """How many of `count` pieces of work go on at once: one a core, or one on a GPU."""
    import torch

    return max(1, min(count, 1 if torch.cuda.is_available() else available_cores()))


def in_threads(work: Sequence[Callable[[Event], object]]) -> None:
    """Do all of it, each piece with one thread of torch, so that results do not depend on cores.

    A piece looks at its event between steps that it would not want to lose, and returns when it is
    set: another piece failed, or the user interrupted. What failed first is raised.
    """
    import torch

    stop, threads = Event(), torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(
        threads_at_once(len(work)), initializer=lambda: torch.set_num_threads(1)
    )
    try:
        futures = [pool.submit(piece, stop) for piece in work]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
