"""What is trained by which loss, at which rate; and a model that takes another resolution."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models.family import size
from models.parametrization import build
from models.probes import Heads
from scaling.errors import UserError
from scaling.finetune import Tuning, decayed_groups, finetune, objective, retuned
from scaling.weights import trained_runs

QUICK = Tuning(steps=15, batch=8)


def model_and_heads(attention: str, prefix: int = 0):
    config = size(16, 2, 2, vocab=20, context=9, base_width=16)
    model = build(replace(config, attention=attention, prefix=prefix), seed=0)
    with torch.no_grad():
        model.head.normal_()
    heads = Heads("attention", 3, 16, 3, seed=0)
    with torch.no_grad():
        heads.weight.normal_()
    ids, labels = torch.randint(4, 20, (6, 9)), torch.randint(3, (6,))
    return model, heads, ids, labels


def gradients(attention: str, prefix: int = 0) -> dict[str, torch.Tensor]:
    model, heads, ids, labels = model_and_heads(attention, prefix)
    torch.manual_seed(0)
    objective(model, heads, ids, labels)[0].backward()
    assert all(p.grad is not None for p in heads.parameters())
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_heads_do_not_move_the_model_under_causal_attention() -> None:
    """The model's gradient is that of the next-token loss alone."""
    model, heads, ids, labels = model_and_heads("causal")
    objective(model, heads, ids, labels)[0].backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-6)


def test_full_attention_is_trained_by_the_heads() -> None:
    got = gradients("full")
    assert "head" not in got and got["layers.0.qkv"].abs().max() > 0
    model, heads, ids, labels = model_and_heads("full")
    assert torch.isnan(objective(model, heads, ids, labels)[1])


def test_prefix_does_not_predict_what_it_has_seen() -> None:
    """A token inside the prefix is no target: the loss is that of the rest."""
    model, heads, ids, labels = model_and_heads("prefix", 5)
    nats = objective(model, heads, ids, labels)[1]
    losses = model.loss(ids[:, :-1], ids[:, 1:], reduction="none")
    torch.testing.assert_close(nats, losses[:, 4:].mean(), rtol=1e-5, atol=1e-5)


def test_rates_decay_by_layer() -> None:
    model = build(size(32, 3, 2, vocab=20, context=9, base_width=16), seed=0)
    names = {id(p): n for n, p in model.named_parameters()}
    rate = {names[id(g["params"][0])]: g["lr"] for g in decayed_groups(model, Tuning(lr=1.0))}
    assert rate["head"] == 1.0 and rate["norm"] == 1.0
    assert rate["embed"] == pytest.approx(0.9**4)
    assert rate["layers.2.norm_ffn"] == pytest.approx(0.9)
    assert rate["layers.0.norm_ffn"] == pytest.approx(0.9**3)
    assert rate["layers.1.qkv"] == pytest.approx(0.9**2 / 2)  # muP: half at twice the base width


def test_retuned_keeps_the_function_where_nothing_changed(study: Path) -> None:
    (trained,) = trained_runs(study)
    before = trained.model("trained")
    ids = torch.randint(4, before.config.vocab, (2, 9))
    same = retuned(trained, 16, Tuning(rope_base=10_000.0))
    other = retuned(trained, 64, Tuning())
    assert other.config.context == 65 and other.config.rope_base == 50_000
    with torch.no_grad():
        torch.testing.assert_close(same(ids), before(ids))
        assert not torch.allclose(other(ids), before(ids))


def test_a_study_is_fine_tuned(study: Path, pictures: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(study, tmp_path / "own"))
    for attention in ("causal", "full"):
        tuning = replace(QUICK, attention=attention)
        out = finetune(own, pictures, tuning=tuning, seeds=2, say=lambda _: None)
    table = pd.read_csv(out)
    assert len(table) == 2 * 2 * 3 and set(table.px) == {16} and set(table.tokens) == {16}
    causal = table[table.attention == "causal"]
    assert causal.next_token_loss.notna().all() and (causal.next_token_loss < 4).all()
    assert table[table.attention == "full"].next_token_loss.isna().all()
    assert causal.top1.max() > causal.chance.max() + 0.2
    before = out.read_bytes()
    said: list[str] = []
    finetune(own, pictures, tuning=QUICK, seeds=2, say=said.append)
    assert said == [] and out.read_bytes() == before


def test_mistakes(study: Path, pictures: Path, clips: Path) -> None:
    with pytest.raises(UserError, match="takes labelled images"):
        finetune(study, clips)
    with pytest.raises(UserError, match="choose causal, prefix or full"):
        finetune(study, pictures, tuning=Tuning(attention="both"))
    with pytest.raises(UserError, match="10 px are no multiple of the tokenizer's 4 px"):
        finetune(study, pictures, tuning=Tuning(px=10))
    assert np.isfinite(Tuning().lr)
