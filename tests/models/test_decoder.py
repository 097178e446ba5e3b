"""What every family does: who sees whom, hidden states, caches, recomputation, patches."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scaling.models.attention import rope_tables, rotate
from scaling.models.decoder import Decoder
from scaling.models.family import ModelConfig, size
from scaling.models.mamba import selective_scan
from scaling.models.parametrization import build

TOTO = size(32, 2, 2, vocab=50, context=24)
GPT2 = size(32, 2, 2, vocab=50, context=24, family="gpt2", positions="learned")
MAMBA = size(32, 2, 1, vocab=50, context=24, family="mamba")
CAUSAL = {
    "toto": TOTO,
    "toto-one-kv-head": replace(TOTO, kv_heads=1),
    "toto-prefix": replace(TOTO, attention="prefix", prefix=6),
    "toto-completep": replace(TOTO, base_layers=1),
    "gpt2": GPT2,
    "mamba": MAMBA,
}
FAMILIES = {k: CAUSAL[k] for k in ("toto", "gpt2", "mamba")}


def randomised(config: ModelConfig) -> Decoder:
    """No zero-initialised matrix may hide what a test looks for."""
    model = build(config, seed=0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=random) / p.shape[-1] ** 0.5)
    return model


def some_tokens(config: ModelConfig, T: int = 24) -> Tensor:
    return torch.randint(config.vocab, (3, T), generator=torch.Generator().manual_seed(2))


def sees(config: ModelConfig) -> Tensor:
    """(T, T): whether the logits of a row depend on the token of a column."""
    model, tokens = randomised(config), some_tokens(config)[:1]
    logits, rows = model(tokens), []
    for column in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[0, column] = (changed[0, column] + 1) % config.vocab
        rows.append(((model(changed) - logits).abs() > 1e-6).any(-1)[0])
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_causal(config: ModelConfig) -> None:
    assert torch.equal(sees(config), torch.ones(24, 24).tril().bool())


@pytest.mark.parametrize("family", [TOTO, GPT2], ids=["toto", "gpt2"])
def test_prefix_and_full(family: ModelConfig) -> None:
    prefix = torch.ones(24, 24).tril().bool()
    prefix[:6, :6] = True
    assert torch.equal(sees(replace(family, attention="prefix", prefix=6)), prefix)
    assert sees(replace(family, attention="full")).all()


@pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)
def test_cache_equals_one_pass(config: ModelConfig) -> None:
    """In pieces of 9, 1, 6, 1, ... tokens, as a prompt and single tokens come."""
    model, tokens = randomised(config), some_tokens(config)
    with torch.no_grad():
        whole, cache, pieces, at = model(tokens), model.new_cache(3), [], 0
        for n in (9, 1, 6, 1, 1, 4, 2):
            pieces.append(model(tokens[:, at : at + n], cache=cache))
            at += n
    assert cache.length == 24
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"25 positions are more than the context .* \(24\)"):
        model(tokens[:, :1], cache=cache)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_hidden_states_come_with_the_logits(config: ModelConfig) -> None:
    model, tokens = randomised(config), some_tokens(config)
    logits, states = model(tokens, hidden=True)
    assert list(states) == ["embed", "layer_1", "layer_2", "final"]
    assert all(x.shape == (3, 24, 32) for x in states.values())
    assert torch.equal(logits, model(tokens))
    readout = states["final"] * config.readout_scale @ model.head.T
    torch.testing.assert_close(readout, logits)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_recomputation_changes_nothing(config: ModelConfig) -> None:
    tokens, gradients = some_tokens(config), []
    for recompute in (False, True):
        model = randomised(config)
        model.recompute = recompute
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        gradients.append([p.grad for p in model.parameters()])
    for kept, made_again in zip(*gradients, strict=True):
        assert kept is not None
        assert torch.equal(kept, made_again)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_loss_by_position_and_mean(config: ModelConfig) -> None:
    model, tokens = randomised(config), some_tokens(config)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    each = model.loss(inputs, targets, "none")
    p = model(inputs).log_softmax(-1).gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(each, -p.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.loss(inputs, targets), each.mean())


def test_rope_is_a_rotation_by_relative_position() -> None:
    cos, sin = rope_tables(40, 8, 10_000.0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def product(i: int, j: int) -> Tensor:
        at_i = rotate(q, cos[i : i + 1, None], sin[i : i + 1, None])
        at_j = rotate(k, cos[j : j + 1, None], sin[j : j + 1, None])
        return (at_i * at_j).sum()

    torch.testing.assert_close(product(9, 4), product(35, 30), atol=1e-5, rtol=1e-5)
    assert (product(9, 4) - product(9, 5)).abs() > 1e-3
    torch.testing.assert_close(rotate(q, cos[:1, None], sin[:1, None]), q)


def test_finetune_at_another_resolution_and_rope_base() -> None:
    """16x16 -> 32x32 tokens: the weights fit a model of a longer context and a larger base."""
    small = randomised(TOTO)
    large = build(replace(TOTO, context=96, rope_base=50_000.0), seed=1)
    large.load_state_dict(small.state_dict())
    tokens = some_tokens(TOTO)
    assert not torch.allclose(large(tokens), small(tokens))
    assert large(some_tokens(TOTO, 96)).shape == (3, 96, 50)
    same_base = build(replace(TOTO, context=96), seed=1)
    same_base.load_state_dict(small.state_dict())
    torch.testing.assert_close(same_base(tokens), small(tokens))


def test_sequential_scan() -> None:
    """The chunked scan against its definition, one position after the other."""
    random = torch.Generator().manual_seed(0)
    for T in (1, 2, 9, 23):
        u, step = torch.rand(2, 2, T, 6, generator=random)
        into, out = torch.randn(2, 2, T, 4, generator=random)
        decay = -torch.rand(6, 4, generator=random) * 30
        state = first = torch.randn(2, 6, 4, generator=random)
        y = []
        for t in range(T):
            gain = torch.exp(step[:, t, :, None] * decay)
            state = gain * state + (step * u)[:, t, :, None] * into[:, t, None]
            y.append((state * out[:, t, None]).sum(-1))
        ours, last = selective_scan(u, step, decay, into, out, first)
        torch.testing.assert_close(ours, torch.stack(y, 1))
        torch.testing.assert_close(last, state)


@pytest.mark.parametrize("targets", [48, 0])
def test_patches(targets: int) -> None:
    """Patches in, the next normalised patch (or token) out; it learns."""
    from scaling.models.parametrization import optimizer

    config = replace(TOTO, patch_inputs=48, patch_targets=targets)
    model, random = build(config, seed=0), torch.Generator().manual_seed(3)
    patches = torch.randn(3, 24, 48, generator=random)
    inputs = torch.cat((torch.zeros(3, 1, 48), patches[:, :-1]), 1)
    expected = patches if targets else some_tokens(config)
    assert model(inputs).shape == (3, 24, targets or 50)
    adam, losses = optimizer(model, lr=2**-6, weight_decay=0.0), []
    for _ in range(40):
        loss = model.loss(inputs, expected)
        loss.backward()
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert model.loss(inputs, expected, "none").shape == (3, 24)


def test_full_attention_has_no_cache() -> None:
    model = build(replace(TOTO, attention="full"), seed=0)
    cache, tokens = model.new_cache(3), some_tokens(TOTO)
    model(tokens[:, :5], cache=cache)
    with pytest.raises(ValueError, match="attends in both directions"):
        model(tokens[:, 5:6], cache=cache)


@pytest.mark.parametrize("heads", [4, 1])
def test_bfloat16_autocast_is_the_float32_model_within_rounding(heads: int) -> None:
    """Narrow heads attend in float32 on a CPU, wide ones in bfloat16; both train the same model."""
    config = size(64, 2, heads, vocab=97, context=80)
    tokens = torch.randint(97, (2, 81), generator=torch.Generator().manual_seed(0))
    gradients = []
    for low in (False, True):
        model = build(config, seed=0)
        with torch.no_grad():
            model.head.normal_(generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        assert loss.dtype == torch.float32
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1]) == {n for n, _ in model.named_parameters()}
    for name, full in gradients[0].items():
        apart = (gradients[1][name] - full).norm() / full.norm().clamp(min=1e-6)
        assert 0 < apart < 0.03 or not full.any(), name
