"""Work in threads: all of it is done, one failure ends it, and weights come out the same."""

import threading
from functools import partial
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from scaling.jobs import machine
from scaling.jobs.machine import in_threads, threads_at_once
from scaling.models.family import size
from scaling.models.parametrization import build
from scaling.storage import files
from tests.shell import HANGS

CUDA = torch.cuda.is_available()  # as it is, before a test says otherwise


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_all_is_done_with_one_thread_of_torch_each() -> None:
    before, seen = torch.get_num_threads(), []
    meet = threading.Barrier(4, timeout=HANGS)  # so four are at work at once

    def piece(number: int, stop: Event) -> None:
        if number < 4:
            meet.wait()
        seen.append((number, torch.get_num_threads(), stop.is_set()))

    in_threads([partial(piece, i) for i in range(9)])
    assert sorted(seen) == [(i, 1, False) for i in range(9)]
    assert torch.get_num_threads() == before
    assert (threads_at_once(9), threads_at_once(2), threads_at_once(0)) == (4, 2, 1)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_ends_the_others(error: type[BaseException]) -> None:
    begun = []

    def fails(stop: Event) -> None:
        raise error("no")

    def waits(number: int, stop: Event) -> None:
        begun.append(number)
        assert stop.wait(HANGS)

    with pytest.raises(error, match="no"):
        in_threads([partial(waits, 0), fails, *(partial(waits, i) for i in range(1, 40))])
    assert len(begun) < 40  # those that had not begun never do


def test_models_built_at_once_are_those_built_alone() -> None:
    config = size(32, 2, 2, vocab=68, context=17, base_width=16)
    alone = {seed: build(config, seed=seed).state_dict() for seed in range(12)}
    together = {}

    def piece(seed: int, stop: Event) -> None:
        together[seed] = build(config, seed=seed).state_dict()

    in_threads([partial(piece, seed) for seed in alone])
    for seed, state in alone.items():
        assert all(torch.equal(state[name], together[seed][name]) for name in state)


def test_threads_may_write_one_file(tmp_path: Path) -> None:
    content = bytes(1_000_000)

    def piece(stop: Event) -> None:
        for _ in range(20):
            files.write(tmp_path / "x", content)

    in_threads([piece] * 4)
    assert (tmp_path / "x").read_bytes() == content and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("build", "driver", "sure"),
    [
        ("cuda = hip = None", True, True),
        ("cuda = None\nhip = '7.1'", False, False),
        ("cuda, hip = '13.0', None", False, True),
        ("cuda, hip = '13.0', None", True, False),
    ],
)
def test_that_there_is_no_gpu_is_known_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str, driver: bool, sure: bool
) -> None:
    """By how torch was built, and by the driver's library; never where torch would find one."""
    assert not (CUDA and machine._surely_no_cuda())

    def load(name: str) -> None:
        if not driver:
            raise OSError(f"{name}: cannot open shared object file")

    (tmp_path / "version.py").write_text(build)
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    monkeypatch.setattr("ctypes.CDLL", load)
    monkeypatch.setattr("sys.platform", "linux")
    assert machine._surely_no_cuda() == sure
