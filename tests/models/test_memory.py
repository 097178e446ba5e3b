"""The estimate of a step's memory against what autograd really keeps."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from scaling.models.family import FAMILY, ModelConfig, size
from scaling.models.memory import check_fits, device_bytes, peak_bytes, training_bytes
from scaling.models.parametrization import build

CASES = {
    "toto": size(32, 3, 2, vocab=60, context=50),
    "gpt2": size(32, 3, 2, vocab=60, context=50, family="gpt2"),
    "mamba": size(32, 3, 1, vocab=60, context=50, family="mamba"),
}


def kept_bytes(config: ModelConfig, batch: int, recompute: bool) -> int:
    model = build(config, seed=0)
    model.recompute = recompute
    weights = {p.data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}
    alive = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        alive.append(x)
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    tokens = torch.zeros(batch, config.context, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.loss(tokens, tokens)
    return sum(n for pointer, n in storages.items() if pointer not in weights)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_activations_are_what_autograd_keeps(config: ModelConfig) -> None:
    for batch in (1, 4):
        assert training_bytes(config, batch)["activations"] == kept_bytes(config, batch, False)
    without, recompute = kept_bytes(config, 4, False), kept_bytes(config, 4, True)
    one_block = (without - recompute) // 3
    assert training_bytes(config, 4, recompute=True)["activations"] == recompute + one_block
    assert training_bytes(config, 4, bf16=True)["activations"] < without


def test_weights_and_moments() -> None:
    need = training_bytes(FAMILY["base"], 1)
    assert need["weights"] == need["gradients"] == need["moments"] // 2 == 4 * 119_559_936
    assert training_bytes(FAMILY["base"], 1, shards=4)["moments"] == need["moments"] // 4
    large = training_bytes(replace(FAMILY["a4"], context=4097), 8)
    assert large["logits"] <= 2**28 < 4 * 8 * 4097 * 16388, "logits come in chunks"


def test_more_than_the_device_has() -> None:
    cpu = torch.device("cpu")
    assert device_bytes(cpu) > 2**28
    check_fits(CASES["toto"], 1, cpu)
    with pytest.raises(
        ValueError, match=r"a6 with 4096 sequences .* GB \(weights 5.3, .* has .* GB"
    ):
        check_fits(replace(FAMILY["a6"], context=256), 4096, cpu)
    with pytest.raises(ValueError, match=r"fewer sequences at a time .*activation checkpointing"):
        check_fits(FAMILY["a6"], 512, cpu)


def test_a_peak_is_of_the_process_itself() -> None:
    """Whoever starts a program hands its own ru_maxrss on to it, however small that is."""
    code = """
import resource, sys
import numpy as np
from scaling.models.memory import peak_bytes
first = peak_bytes()
np.ones(25_000_000)
print(first, peak_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    held = np.ones(125_000_000)  # 1 GB
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, then, handed_on = map(int, done.stdout.split())
    assert held.nbytes < peak_bytes()
    assert 0.19e9 < then - first < 0.25e9, "200 MB were made"
    assert then < held.nbytes < handed_on
