"""The chunked losses against the plain ones."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import scaling.models.loss
from scaling.models.loss import normalise_patches, patch_loss, token_loss


@pytest.mark.parametrize("chunk", [2**26, 500])
@pytest.mark.parametrize("bf16", [False, True])
def test_token_loss_equals_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, chunk: int, bf16: bool
) -> None:
    monkeypatch.setattr(scaling.models.loss, "CHUNK_LOGITS", chunk)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 17, 16, generator=random, requires_grad=True)
    head = torch.randn(50, 16, generator=random, requires_grad=True)
    targets = torch.randint(50, (3, 17), generator=random)

    logits = F.linear(x, head)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    gradients = torch.autograd.grad(3 * expected.mean(), (x, head))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        ours = token_loss(x, head, targets)
        each = token_loss(x, head, targets, "none")
        with torch.no_grad():
            plain = token_loss(x, head, targets)
    ours_gradients = torch.autograd.grad(3 * ours, (x, head))

    tolerance = 3e-2 if bf16 else 1e-5
    torch.testing.assert_close(ours, expected.mean(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(plain, expected.mean(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(each, expected.view(3, 17), atol=10 * tolerance, rtol=tolerance)
    assert ours.dtype == each.dtype == torch.float32
    for mine, theirs in zip(ours_gradients, gradients, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_logits_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of a loss over 16k ids is a chunk of logits or the head itself."""
    from torch.utils._python_dispatch import TorchDispatchMode

    monkeypatch.setattr(scaling.models.loss, "CHUNK_LOGITS", 2**16)
    largest = 0

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]  # torch annotates none of it

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    x = torch.randn(1, 64, 4, requires_grad=True)
    head = torch.randn(16384, 4, requires_grad=True)
    with Watch():
        token_loss(x, head, torch.zeros(1, 64, dtype=torch.long)).backward()
    assert largest == 2**16 < 64 * 16384


def test_normalised_patches() -> None:
    patches = 5 + 3 * torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
    normal = normalise_patches(patches)
    torch.testing.assert_close(normal.mean(-1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal.var(-1), torch.ones(2, 3), atol=1e-4, rtol=0)
    head = torch.zeros(48, 8)
    flat = patch_loss(torch.ones(2, 3, 8), head, patches)
    torch.testing.assert_close(flat, torch.tensor(47 / 48), atol=1e-4, rtol=0)
    assert patch_loss(torch.ones(2, 3, 8), head, patches, "none").shape == (2, 3)


def test_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="reduction is 'sum'; it must be 'mean' or 'none'"):
        token_loss(torch.zeros(1, 1, 2), torch.zeros(3, 2), torch.zeros(1, 1).long(), "sum")
