"""Muon for hidden matrices: torch's own update, a width rule that keeps coordinates flat."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from scaling.models.coord_check import coord_check
from scaling.models.parametrization import build, hidden_matrices, optimizer
from tests.models.test_parametrization import BASE, FAMILIES, WIDE, tokens_BT


def gradients(model: torch.nn.Module) -> None:
    (tokens,) = tokens_BT()
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()  # type: ignore[operator]


def orthogonal(update: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz by its definition, X <- a X + (b X X' + c (X X')^2) X five times, in double."""
    x: torch.Tensor = update.double() / update.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("config", [BASE, WIDE, replace(WIDE, parametrization="standard")])
def test_a_step_is_torchs_muon_and_the_formula(config: object) -> None:
    """Bit for bit that of torch.optim.Muon at lr / sqrt(width multiplier); the reference formula in
    double within bfloat16; everything else as AdamW alone has it."""
    model, other, adam = (build(config, seed=1) for _ in range(3))  # type: ignore[arg-type]
    both = optimizer(model, lr=0.02, weight_decay=0.1, kind="muon")
    alone = optimizer(adam, lr=0.02, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for one in (model, other, adam):
        gradients(one)
    hidden = hidden_matrices(model.config)
    assert hidden == {f"layers.{i}.{n}" for i in (0, 1) for n in ("qkv", "out", "gate_up", "down")}
    lr = 0.02 / model.config.width_mult**0.5
    theirs = torch.optim.Muon(
        [p for name, p in other.named_parameters() if name in hidden],
        lr=lr, weight_decay=0.002 / lr, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    for optim in (both, theirs, alone):
        optim.step()
    beside, adams = dict(other.named_parameters()), dict(adam.named_parameters())
    for name, p in model.named_parameters():
        if name not in hidden:
            assert torch.equal(p, adams[name]), name
            continue
        assert torch.equal(p, beside[name]), name
        if before[name].grad_fn is None and p.grad is not None and p.grad.any():
            moved = (before[name] * (1 - 0.002) - p).double().detach()
            expected = orthogonal(p.grad) * lr * 0.2 * max(p.shape) ** 0.5
            wrong = (moved - expected).norm() / expected.norm()
            assert wrong < 0.05, (name, wrong)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_step_does_not_depend_on_the_size_of_the_gradient(factor: float) -> None:
    """So the clipped gradient, whose norm moves with width, gives the step of the whole one."""
    steps = []
    for scale in (1.0, factor):
        model = build(WIDE, seed=1)
        optim = optimizer(model, lr=0.02, weight_decay=0.0, kind="muon")
        down = model.get_parameter("layers.0.down")
        before = down.detach().clone()
        gradients(model)
        for p in model.parameters():
            assert p.grad is not None
            p.grad *= scale
        optim.step()
        steps.append(down.detach() - before)
    torch.testing.assert_close(steps[1], steps[0], rtol=0.05, atol=1e-4)


def test_coordinates_are_flat_under_mup_only() -> None:
    widths, tokens = [32, 64, 128], tokens_BT()[0]
    check = coord_check(BASE, tokens, widths=widths, lr=2**-7, kind="muon")
    assert check.passed, check.verdict
    control = replace(BASE, parametrization="standard")
    check = coord_check(control, tokens, widths=widths, lr=2**-7, kind="muon")
    assert check.worst[1] > 0.3, check.verdict


@pytest.mark.parametrize("name", ["toto", "mamba"])
def test_a_saved_state_goes_on_bitwise(name: str) -> None:
    """Both optimizers' state, by one state_dict; at the base width muP is the standard."""

    def steps(count: int, model: torch.nn.Module, optim: torch.optim.Optimizer) -> None:
        for _ in range(count):
            gradients(model)
            optim.step()
            optim.zero_grad()

    ends = []
    for parametrization in ("mup", "standard"):
        config = replace(FAMILIES[name], parametrization=parametrization)
        model = build(config, seed=3)
        optim = optimizer(model, lr=2**-6, weight_decay=0.1, kind="muon")
        steps(2, model, optim)
        again = build(config, seed=4)
        again.load_state_dict(model.state_dict())
        other = optimizer(again, lr=2**-6, weight_decay=0.1, kind="muon")
        other.load_state_dict(deepcopy(optim.state_dict()))  # else the moments are shared
        for group in (*optim.param_groups, *other.param_groups):
            group["lr"] *= 0.5
        steps(2, model, optim)
        steps(2, again, other)
        ends += [model.state_dict(), again.state_dict()]
    assert all(torch.equal(w, end[k]) for end in ends[1:] for k, w in ends[0].items())
