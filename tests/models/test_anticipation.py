"""The pyramid, what it learns by, and what it answers."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from scaling.models.anticipation import (
    LEVELS,
    Anticipator,
    Layout,
    Target,
    _giou_loss,
    answers,
    five_of,
    task_loss,
)

NOUNS, VERBS = 3, 2


def perfect(boxes: Sequence[tuple[float, ...]], nouns: list[int], side: int = 12) -> torch.Tensor:
    """Maps (1, C, side, side) that say boxes (shares of the frame) with certainty at their middle,
    verb 1, one second."""
    maps = torch.full((1, 6 + NOUNS + VERBS, side, side), -20.0)
    for rank, (box, noun) in enumerate(zip(boxes, nouns, strict=True)):
        x1, y1, x2, y2 = (v * side for v in box)
        x, y = int((x1 + x2) / 2), int((y1 + y2) / 2)
        sides = torch.tensor([x + 0.5 - x1, y + 0.5 - y1, x2 - x - 0.5, y2 - y - 0.5])
        at = maps[0, :, y, x]
        at[0] = 10 - rank
        at[1:5] = sides.expm1().log()  # inverse of softplus
        at[5] = torch.tensor(1.0).expm1().log()
        at[6 + noun] = at[6 + NOUNS + 1] = 20
    return maps


def test_answers_are_what_the_maps_say() -> None:
    boxes = [(0.1, 0.2, 0.4, 0.5), (0.5, 0.5, 0.9, 0.8)]
    (rows,) = answers(perfect(boxes, [2, 0]), NOUNS)
    np.testing.assert_allclose(rows[:2, :4], boxes, atol=1e-5)
    assert rows[:2, 4].tolist() == [2, 0] and (rows[:2, 5] == 1).all()
    np.testing.assert_allclose(rows[:2, 6], 1, atol=1e-5)
    assert rows[0, 7] > rows[1, 7] > 0.999 and (rows[2:, 7] < 1e-6).all()


def test_two_boxes_of_one_noun_do_not_overlap_by_more_than_half() -> None:
    boxes = [(0.1, 0.1, 0.5, 0.5), (0.1, 0.12, 0.5, 0.68), (0.1, 0.3, 0.5, 0.9)]
    for nouns, kept in (([1, 1, 1], 2), ([1, 0, 1], 3)):
        (rows,) = answers(perfect(boxes, nouns, side=48), NOUNS)
        assert (rows[:, 7] > 0.5).sum() == kept


def test_the_loss_is_least_at_the_truth() -> None:
    """And each part of it grows where that part is wrong alone."""
    boxes = [(0.1, 0.2, 0.4, 0.5), (0.5, 0.5, 0.9, 0.8)]
    maps = perfect(boxes, [2, 0])
    # Places in an object's middle half say the same box.
    for (x1, y1, x2, y2), noun in zip(boxes, [2, 0], strict=True):
        for y in range(12):
            for x in range(12):
                cx, cy = (x + 0.5) / 12, (y + 0.5) / 12
                if 4 * abs(cx - (x1 + x2) / 2) < x2 - x1 and 4 * abs(cy - (y1 + y2) / 2) < y2 - y1:
                    sides = torch.tensor([cx - x1, cy - y1, x2 - cx, y2 - cy]) * 12
                    maps[0, 1:5, y, x] = sides.expm1().log()
                    maps[0, 5, y, x] = torch.tensor(1.0).expm1().log()
                    maps[0, [6 + noun, 6 + NOUNS + 1], y, x] = 20
    truth = Target(
        torch.tensor([0, 0]), torch.tensor(boxes), torch.tensor([2, 0]), torch.tensor([1, 1]),
        torch.tensor([1.0, 1.0]),
    )  # fmt: skip
    least = float(task_loss(maps, truth, NOUNS, 1.0))
    assert least < 1e-3
    worse = []
    for name, changed in (
        ("box_G4", torch.tensor([[0.2, 0.2, 0.5, 0.5], boxes[1]])), 
        ("noun_G", torch.tensor([1, 0])),
        ("verb_G", torch.tensor([0, 1])), ("seconds_G", torch.tensor([2.0, 1.0])),
    ):  # fmt: skip
        other = Target(**{**truth.__dict__, name: changed})
        worse.append(float(task_loss(maps, other, NOUNS, 1.0)))
    assert min(worse) > 0.1
    without_verbs = Target(**{**truth.__dict__, "verb_G": torch.tensor([0, 1])})
    assert float(task_loss(maps, without_verbs, NOUNS, 0.0)) == pytest.approx(least, abs=1e-6)


def test_generalised_overlap_by_counting() -> None:
    """Against boxes drawn on a fine grid."""
    a, b = torch.tensor([[2.0, 1.0, 2.0, 3.0]]), torch.tensor([[1.0, 3.0, 4.0, 1.0]])
    y, x = np.mgrid[-5:5:0.01, -5:5:0.01]

    def drawn(sides: torch.Tensor) -> np.ndarray:
        left, top, right, bottom = sides[0].tolist()
        return np.asarray((x > -left) & (x < right) & (y > -top) & (y < bottom))

    one, other = drawn(a), drawn(b)
    union = (one | other).sum() * 1e-4
    hull = (2 + 4) * (3 + 3)
    expected = 1 - (one & other).sum() * 1e-4 / union + (hull - union) / hull
    assert float(_giou_loss(a, b)) == pytest.approx(expected, abs=2e-2)


def test_layers_are_spread_over_the_depth() -> None:
    for layers in range(1, 40):
        five = five_of(layers)
        assert len(five) == len(LEVELS) and five == sorted(five) and five[-1] == layers
        assert five[0] == (layers >= 5) and (layers < 5 or len({*five}) == 5)


@pytest.mark.parametrize("before", [0, 3])
def test_maps_see_the_frames_before(before: int) -> None:
    """Twice the tokens' grid, which need not be square; each frame before the last moves it."""
    layout = Layout(before, (2, 3), (4, 6))
    head = Anticipator(8, NOUNS, VERBS, layout, seed=0)
    states = [torch.randn(2, layout.tokens, 8, requires_grad=True) for _ in LEVELS]
    maps = head(states)
    assert maps.shape == (2, 6 + NOUNS + VERBS, 8, 12)
    maps.square().sum().backward()
    for state in states:
        assert state.grad is not None and (state.grad.abs().amax((0, 2)) > 0).all()
    again = Anticipator(8, NOUNS, VERBS, layout, seed=0)
    assert all(
        torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True)
    )
