"""Closed forms against torch's own counter, on the meta device."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scaling.models.family import FAMILY, ModelConfig, size
from scaling.models.macs import attended_pairs, forward_macs, parameter_counts
from scaling.models.parametrization import CLASSES

TOTO = size(64, 3, 4, vocab=97, context=300)
GPT2 = size(64, 3, 4, vocab=97, context=300, family="gpt2")
CASES = {
    "toto": TOTO,
    "toto-full": replace(TOTO, attention="full"),
    "toto-prefix": replace(TOTO, attention="prefix", prefix=70),
    "toto-one-kv-head": replace(TOTO, kv_heads=1),
    "toto-tied": replace(TOTO, tied=True),
    "toto-patches": replace(TOTO, patch_inputs=48, patch_targets=48),
    "toto-patches-to-tokens": replace(TOTO, patch_inputs=48),
    "gpt2": GPT2,
    "gpt2-learned": replace(GPT2, positions="learned"),
    "gpt2-full": replace(GPT2, attention="full"),
    "gpt2-prefix": replace(GPT2, attention="prefix", prefix=70),
    "mamba": size(64, 3, 1, vocab=97, context=300, family="mamba"),
} | {name: replace(FAMILY[name], layers=1, context=4097) for name in ("a1", "base", "table15-a3")}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
@pytest.mark.parametrize("positions", [1, 257])
def test_macs_equal_torch(config: ModelConfig, positions: int) -> None:
    """torch counts every query-key pair, masked or not; so does `attention: full`."""
    with torch.device("meta"):
        model = CLASSES[config.family](config)
        inputs = torch.zeros(1, positions, dtype=torch.long)
        if config.patch_inputs:
            inputs = torch.zeros(1, positions, config.patch_inputs)
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    ours = forward_macs(config, positions)
    if config.family != "mamba":
        ours["attention"] = 2 * config.layers * config.d * positions**2
    assert counter.get_total_flops() == 2 * sum(ours.values())


@pytest.mark.parametrize("attention", ["causal", "full", "prefix"])
@pytest.mark.parametrize("T", [1, 5, 40])
def test_attended_pairs_equal_the_mask(attention: str, T: int) -> None:
    prefix = 7 if attention == "prefix" else 0
    config = replace(TOTO, attention=attention, prefix=prefix)
    pairs = 0
    for row in range(T):
        for column in range(T):
            both_in_prefix = row < prefix and column < prefix
            pairs += attention == "full" or column <= row or both_in_prefix
    assert attended_pairs(config, T) == pairs


def test_terms_of_the_paper_formula() -> None:
    """Forward per token: L (4 d^2 + 3 d d_ff + d (T + 1)) + d V, as the a-family counts it."""
    a1, T = FAMILY["a1"], 4097
    macs = forward_macs(a1, T)
    assert macs == {
        "qkvo": T * 12 * 4 * 256**2,
        "attention": 12 * 256 * T * (T + 1),
        "ffn": T * 12 * 3 * 256 * 704,
        "head": T * 256 * 16388,
    }
    assert all(type(v) is int for v in macs.values())


@pytest.mark.parametrize("config", [*CASES.values(), *FAMILY.values()], ids=lambda c: c.name)
def test_parameter_counts_equal_the_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = CLASSES[config.family](config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    counts = parameter_counts(config)
    assert counts["all"] == sum(sizes.values())
    embeddings = sum(n for k, n in sizes.items() if k in ("embed", "embed_bias", "positions_Td"))
    assert counts["embedding"] == embeddings
    assert counts["non_embedding"] == counts["all"] - embeddings - sizes.get("head", 0)
    groups = ("embedding", "qkvo", "ffn", "other", "head")
    assert sum(counts[g] for g in groups) == counts["all"]
