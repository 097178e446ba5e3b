"""Heads on hidden states equal plain references, and layers do not see one another."""

import pytest
import torch
import torch.nn.functional as F

from scaling.models.probes import (
    KINDS,
    Heads,
    Recipe,
    cells,
    file_scores,
    grid_of,
    top_accuracy,
    train_heads,
)

L, B, T, D, C = 3, 5, 8, 8, 4  # two frames of 2 x 2 tokens


def filled(kind: str, heads: int = 2) -> Heads:
    made = Heads(kind, range(L), D, C, side=2, heads=heads, seed=3)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_()
    return made


def test_attention_equals_a_plain_reference() -> None:
    """Keys, values and softmax written out, a layer and a sequence at a time."""
    heads, x = filled("attention"), torch.randn(L, B, T, D)
    got = heads(x)
    for layer in range(L):
        for b in range(B):
            keys = x[layer, b] @ heads.key[layer].T
            values = x[layer, b] @ heads.value[layer].T
            weight = torch.softmax(keys @ heads.query[layer] / D**0.5, 0)
            expected = heads.weight[layer] @ (weight @ values) + heads.bias[layer]
            torch.testing.assert_close(got[layer, b], expected, rtol=1e-5, atol=1e-5)


def test_cross_attention_equals_torch() -> None:
    heads, x = filled("cross"), torch.randn(L, B, T, D)
    got = heads(x)
    for layer in range(L):
        normed = F.layer_norm(x[layer], (D,))
        query = heads.query[layer].expand(B, 1, D)
        y, _ = F.multi_head_attention_forward(
            query.transpose(0, 1), normed.transpose(0, 1), normed.transpose(0, 1), D, 2,
            torch.cat((heads.project_query[layer], heads.key[layer], heads.value[layer])),
            None, None, None, False, 0.0, heads.out[layer], None, need_weights=False,
        )  # fmt: skip
        y = heads.query[layer] + y[0]
        h = F.gelu(F.layer_norm(y, (D,)) @ heads.up[layer].T)
        pooled = y + h @ heads.down[layer].T
        expected = pooled @ heads.weight[layer].T + heads.bias[layer]
        torch.testing.assert_close(got[layer], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_train_as_if_alone(kind: str) -> None:
    x = torch.randn(L, 40, T, D)
    labels, rows = torch.randint(C, (40,)), torch.arange(40)
    recipe = Recipe(steps=12, batch=16)
    together = Heads(kind, range(L), D, C, side=2, seed=1)
    alone = Heads(kind, [1], D, C, side=2, seed=1)
    for p, q in zip(together.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p[1:2], q)
    train_heads(together, lambda r: x[:, r], rows, labels, recipe, seed=2)
    train_heads(alone, lambda r: x[1:2, r], rows, labels, recipe, seed=2, at_once=5)
    for p, q in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p[1:2], q, rtol=1e-3, atol=1e-4)


def test_attention_learns_what_an_average_hides() -> None:
    """The class is which of two marked tokens carries a sign; the mean over tokens is the same."""
    torch.manual_seed(0)
    labels = torch.randint(2, (300,))
    x = torch.randn(1, 300, 4, D) * 0.1
    sign = 2.0 * labels - 1
    x[0, :, 0, 0], x[0, :, 0, 1] = sign, 1.0
    x[0, :, 1, 0], x[0, :, 1, 1] = -sign, -1.0
    accuracy = {}
    for kind in ("average", "attention"):
        heads = Heads(kind, [0], D, 2, side=2, seed=0)
        train_heads(
            heads, lambda r: x[:, r], torch.arange(200), labels[:200], Recipe(steps=300), seed=0
        )
        rows = torch.arange(200, 300)
        scores = file_scores(heads, lambda r: x[:, r], rows, rows - 200, 100, batch=32)
        accuracy[kind] = float(top_accuracy(scores, labels[200:], 1)[0])
    assert accuracy["attention"] > 0.95 and accuracy["average"] < 0.75


def test_a_grid_learns_where() -> None:
    """The class is the place of one token among four that are alike, in frames of which one only
    shows it: neither the average nor a query that sees no place can tell."""
    torch.manual_seed(0)
    labels = torch.randint(4, (300,))
    x = torch.randn(1, 300, T, D) * 0.1
    x[0, torch.arange(300), 4 + labels, 0] += 4
    accuracy = {}
    for kind in ("average", "attention", "grid"):
        heads = Heads(kind, [0], D, 4, side=2, seed=0)
        rows, recipe = torch.arange(300), Recipe(steps=300)
        train_heads(heads, lambda r: x[:, r], rows[:200], labels[:200], recipe, seed=0)
        scores = file_scores(heads, lambda r: x[:, r], rows[200:], rows[:100], 100, batch=32)
        accuracy[kind] = float(top_accuracy(scores, labels[200:], 1)[0])
    assert accuracy["grid"] > 0.95 and max(accuracy["average"], accuracy["attention"]) < 0.5


def test_cells_are_means_over_frames_and_places() -> None:
    x = torch.randn(2, 3 * 4 * 4, 5)  # three frames of 4 x 4 tokens
    got = cells(x, side=4, grid=2)
    frames = x.view(2, 3, 4, 4, 5)
    assert got.shape == (2, 4, 5)
    torch.testing.assert_close(got[:, 1], frames[:, :, :2, 2:].mean((1, 2, 3)))
    torch.testing.assert_close(got[:, 2], frames[:, :, 2:, :2].mean((1, 2, 3)))
    torch.testing.assert_close(cells(x, side=4, grid=1)[:, 0], x.mean(1))
    # Cells of cells are cells: what is kept on disk serves the average too.
    torch.testing.assert_close(cells(cells(x, 4, 2), 2, 1), cells(x, 4, 1))


def test_a_grid_has_about_nine_thousand_inputs() -> None:
    assert grid_of("average", 16, 64) == 1
    assert [grid_of("grid", 16, d) for d in (32, 64, 768, 1024, 4096)] == [16, 8, 2, 2, 1]
    assert grid_of("grid", 9, 64) == 9


@pytest.mark.parametrize("kind", ["attention", "cross"])
def test_a_head_may_ask_which_window_a_token_is_of(kind: str) -> None:
    """Two windows that look alike carry opposite signs; the class is the sign of the second."""
    torch.manual_seed(0)
    labels = torch.randint(2, (300,))
    x = torch.randn(1, 300, 6, D) * 0.1
    sign = 2.0 * labels[:, None] - 1
    x[0, :, :3, 0], x[0, :, 3:, 0] = -sign, sign
    accuracy = []
    for windows in (1, 2):
        heads = Heads(kind, [0], D, 2, windows=windows, seed=0)
        rows, recipe = torch.arange(300), Recipe(steps=300)
        train_heads(heads, lambda r: x[:, r], rows[:200], labels[:200], recipe, seed=0)
        scores = file_scores(heads, lambda r: x[:, r], rows[200:], rows[:100], 100, batch=32)
        accuracy.append(float(top_accuracy(scores, labels[200:], 1)[0]))
    assert accuracy[1] > 0.95 and accuracy[0] < 0.9


def test_scores_average_views_as_probabilities() -> None:
    heads, x = filled("average"), torch.randn(L, 6, T, D)
    file = torch.tensor([0, 1, 0, 1, 2, 2])
    got = file_scores(heads, lambda r: x[:, r], torch.arange(6), file, 3, batch=4)
    single = heads(x).softmax(-1)
    torch.testing.assert_close(got[:, 0], (single[:, 0] + single[:, 2]) / 2)
    torch.testing.assert_close(got.sum(-1), torch.ones(L, 3))


def test_top_accuracy() -> None:
    scores = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]])
    assert top_accuracy(scores, torch.tensor([1, 2]), 1).tolist() == [0.5]
    assert top_accuracy(scores, torch.tensor([1, 2]), 2).tolist() == [1.0]
    assert top_accuracy(scores, torch.tensor([2, 0]), 5).tolist() == [1.0]


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"head 'mean'.*average, attention, grid"):
        Heads("mean", range(L), D, C)
