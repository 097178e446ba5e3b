"""muP: equal to the standard at the base width, mup's own rules elsewhere, flat coordinates."""

from dataclasses import replace

import mup
import pytest
import torch

from scaling.models.coord_check import coord_check
from scaling.models.family import FAMILY, ModelConfig, size
from scaling.models.parametrization import build, infshapes, optimizer

BASE = size(64, 2, 4, vocab=97, context=48)
WIDE = size(256, 2, 4, vocab=97, context=48)
FAMILIES = {
    "toto": BASE,
    "toto-one-kv-head": replace(BASE, kv_heads=1),
    "toto-tied": replace(BASE, tied=True),
    "toto-patches": replace(BASE, patch_inputs=12),
    "gpt2": size(64, 2, 4, vocab=97, context=48, family="gpt2", positions="learned"),
    "mamba": size(64, 1, 1, vocab=97, context=48, family="mamba"),
}


def tokens_BT(steps: int = 1) -> torch.Tensor:
    """Random walks over the ids: there is something to learn."""
    random = torch.Generator().manual_seed(0)
    return (torch.randint(3, (steps, 4, 49), generator=random) - 1).cumsum(2).remainder(97)


def train(config: ModelConfig, steps: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
    model, losses = build(config, seed=3), []
    adam = optimizer(model, lr=2**-6, weight_decay=0.1)
    for tokens in tokens_BT(steps):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize("name", ["toto", "toto-one-kv-head", "toto-tied", "gpt2", "mamba"])
def test_mup_at_base_width_is_the_standard(name: str) -> None:
    """Same weights, same losses, same weights after training: bit for bit."""
    mup_losses, mup_weights = train(FAMILIES[name])
    losses, weights = train(replace(FAMILIES[name], parametrization="standard"))
    assert mup_losses == losses
    assert all(torch.equal(w, mup_weights[k]) for k, w in weights.items())
    wide = replace(WIDE, parametrization="standard")
    assert train(WIDE)[0] != train(wide)[0], "away from the base width they differ"


def test_deterministic_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second = train(BASE), train(BASE)
    assert torch.equal(torch.get_rng_state(), before)
    assert first[0] == second[0]
    assert all(torch.equal(w, second[1][k]) for k, w in first[1].items())
    other = build(BASE, seed=4).state_dict()
    assert not torch.equal(other["layers.0.out"], build(BASE, seed=3).state_dict()["layers.0.out"])


def test_zero_initialised_readout_and_query() -> None:
    model = build(WIDE, seed=0)
    assert not model.head.any()
    qkv = model.state_dict()["layers.0.qkv"]
    assert not qkv[:256].any()
    assert qkv[256:].std() == pytest.approx(256**-0.5, rel=0.02)


def test_readout_and_attention_follow_mup() -> None:
    """The readout is mup's MuReadout; attention is 1/d_head, 1/sqrt(d_head) at the base."""
    readout = mup.MuReadout(256, 97, bias=False, output_mult=2.0)
    readout.weight.infshape = infshapes(WIDE)["head"]
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    config = replace(WIDE, output_multiplier=2.0)
    ours = torch.nn.functional.linear(x * config.readout_scale, readout.weight)
    torch.testing.assert_close(ours, readout(x))
    assert BASE.attention_scale == pytest.approx(16**-0.5)
    assert WIDE.attention_scale == pytest.approx(16**0.5 / 64)
    assert replace(WIDE, parametrization="standard").attention_scale == pytest.approx(64**-0.5)


@pytest.mark.parametrize("width", [64, 256])
def test_optimizer_groups(width: int) -> None:
    """Matrices at lr / width multiplier; lr x decay equal everywhere; gains not decayed."""
    config = size(width, 2, 4, vocab=97, context=48)
    model = build(config, seed=0)
    adam = optimizer(model, lr=0.02, weight_decay=0.1)
    settings = {
        id(p): (group["lr"], group["weight_decay"], group["betas"], group["fused"])
        for group in adam.param_groups
        for p in group["params"]
    }
    mult = width / 64
    for name, p in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        lr, decay, betas, fused = settings[id(p)]
        assert (betas, fused) == ((0.9, 0.95), True)
        if kind in ("qkv", "out", "gate_up", "down"):
            assert lr == pytest.approx(0.02 / mult)
            assert lr * decay == pytest.approx(0.002)
        elif kind in ("embed", "head"):
            assert (lr, decay) == (0.02, 0.1)
        else:
            assert (lr, decay) == (0.02, 0.0)


def test_optimizer_takes_a_float_and_needs_a_config() -> None:
    with pytest.raises(ValueError, match="muP's groups need a float"):
        optimizer(build(BASE, seed=0), lr=torch.tensor(0.1), weight_decay=0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Linear has no config"):
        optimizer(torch.nn.Linear(2, 2), lr=0.1, weight_decay=0.0)


def test_optimizer_equals_plain_adamw_with_hand_scaled_groups() -> None:
    """Five fused steps at width 256 against torch's AdamW with the groups written out."""
    ours, theirs = build(WIDE, seed=0), build(WIDE, seed=0)
    matrices = [p for n, p in theirs.named_parameters() if p.ndim == 2 and "layers" in n]
    gains = [p for p in theirs.parameters() if p.ndim == 1]
    rest = [theirs.embed, theirs.head]
    lr, decay = 2**-6, 0.1
    plain = torch.optim.AdamW(
        [
            {"params": matrices, "lr": lr / 4, "weight_decay": 4 * decay},
            {"params": rest, "lr": lr, "weight_decay": decay},
            {"params": gains, "lr": lr, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    adam = optimizer(ours, lr=lr, weight_decay=decay)
    for tokens in tokens_BT(5):
        for model, step in ((ours, adam), (theirs, plain)):
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
            step.step()
            step.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_matrix_between_widths_is_scaled(name: str) -> None:
    """Hidden matrices have two infinite dimensions, all with d / base width as multiplier."""
    config = replace(FAMILIES[name], d=128, d_ff=2 * FAMILIES[name].d_ff)
    for parameter, shape in infshapes(config).items():
        kind = parameter.rsplit(".", 1)[-1]
        if kind in ("qkv", "out", "gate_up", "up", "down", "x_gate", "step", "step_input_output"):
            assert shape.ninf() == 2, parameter
            assert shape.width_mult() == 2, parameter
        elif kind != "qkv_bias":
            assert shape.ninf() == 1, parameter
    standard = infshapes(replace(config, parametrization="standard"))
    assert not any(shape.ninf() for shape in standard.values())


def test_table15_widths_meet_the_base_within_rounding() -> None:
    for name in ("table15-a3", "table15-a6"):
        config = FAMILY[name]
        mult = infshapes(replace(config, layers=1))["layers.0.down"].width_mult()
        assert mult == pytest.approx(config.d / 64, rel=2e-3)


def test_completep() -> None:
    """Off it is plain muP; on, branches weigh base depth / depth and eps shrinks (Table 1)."""
    deep = replace(WIDE, layers=8)
    assert deep.residual_scale == 1
    on = replace(deep, base_layers=2)
    assert on.residual_scale == 0.25
    assert train(replace(BASE, base_layers=2))[0] == train(BASE)[0], "at the base depth"
    model = build(on, seed=0)
    eps = {
        id(p): group["eps"]
        for group in optimizer(model, lr=0.01, weight_decay=0.1, eps=1e-8).param_groups
        for p in group["params"]
    }
    for name, p in model.named_parameters():
        expected = 1e-8 / 4 * (0.25 if "layers" in name else 1)
        assert eps[id(p)] == pytest.approx(expected, rel=1e-6), name
    assert build(deep, seed=0).state_dict()["layers.0.out"].std() == pytest.approx(
        16**-1.0 * 16**-0.5, rel=0.05
    )
    assert model.state_dict()["layers.0.out"].std() == pytest.approx(16**-1.0 * 4**-0.5, rel=0.05)


@pytest.mark.parametrize("family", ["toto", "gpt2"])
def test_coordinates_are_flat_under_mup_only(family: str) -> None:
    config = size(64, 2, 4, vocab=97, context=48, family=family)
    widths, tokens = [64, 128, 256], tokens_BT()[0]
    check = coord_check(config, tokens, widths=widths, lr=2**-7)
    assert check.passed, check.verdict
    assert set(check.slopes) == {"embed", "layer_1", "layer_2", "final", "logits"}
    assert len(check.points) == len(widths) * 6 * 5
    control = coord_check(
        replace(config, parametrization="standard"), tokens, widths=widths, lr=2**-7
    )
    assert not control.passed
    assert control.worst[1] > 0.3, control.verdict


def test_coordinate_check_mistakes() -> None:
    with pytest.raises(ValueError, match="at least 2 widths and 1 step"):
        coord_check(BASE, tokens_BT()[0], widths=[64], lr=0.01)
    with pytest.raises(
        ValueError, match=r"width 65: a feed-forward of 176 .* no whole counterpart"
    ):
        coord_check(BASE, tokens_BT()[0], widths=[64, 65], lr=0.01)
