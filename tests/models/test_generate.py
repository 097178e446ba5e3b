"""Drawing frames: the cache changes nothing, the window slides on frames, the knobs work."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.models.decoder import Decoder
from scaling.models.family import ModelConfig, size
from scaling.models.generate import generate
from tests.models.test_decoder import randomised

PER_FRAME = 2
ROOM = 16  # frames that the context holds
TOTO = size(32, 2, 2, vocab=40, context=1 + ROOM * PER_FRAME)
FAMILIES = {
    "toto": TOTO,
    "toto-prefix": replace(TOTO, attention="prefix", prefix=1 + PER_FRAME),
    "gpt2": size(32, 2, 2, vocab=40, context=1 + ROOM * PER_FRAME, family="gpt2"),
    "mamba": size(32, 2, 1, vocab=40, context=1 + ROOM * PER_FRAME, family="mamba"),
}


def a_prompt(frames: int) -> Tensor:
    random = torch.Generator().manual_seed(5)
    codes = torch.randint(4, 40, (2, frames * PER_FRAME), generator=random)
    return torch.cat((torch.ones(2, 1, dtype=torch.long), codes), 1)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("prompt_frames", [3, 20])
def test_cache_changes_nothing_past_the_context(config: ModelConfig, prompt_frames: int) -> None:
    """64 frames from a context of 16: greedy, and by chance with the same seed."""
    model, prompt = randomised(config), a_prompt(prompt_frames)
    for temperature in (0.0, 1.0):
        drawn = [
            generate(
                model,
                prompt,
                frames=64,
                tokens_per_frame=PER_FRAME,
                temperature=temperature,
                top_k=30,
                top_p=0.95,
                seed=7,
                use_cache=use_cache,
            )
            for use_cache in (True, False)
        ]
        assert drawn[0].shape == (2, 64 * PER_FRAME)
        assert torch.equal(*drawn)


def test_greedy_equals_forward_passes_over_the_window() -> None:
    """The definition, written out: start token, the last 15 frames, the frame being drawn."""
    model, prompt = randomised(TOTO), a_prompt(2)
    drawn = generate(model, prompt, frames=20, tokens_per_frame=PER_FRAME, temperature=0.0)
    sequence = prompt
    for i in range(20 * PER_FRAME):
        frame = (sequence.shape[1] - 1) // PER_FRAME
        first = 1 + max(0, frame - ROOM + 1) * PER_FRAME
        window = torch.cat((prompt[:, :1], sequence[:, first:]), 1)
        token = model(window)[:, -1].argmax(-1)
        assert torch.equal(drawn[:, i], token), i
        sequence = torch.cat((sequence, token[:, None]), 1)


def draw(model: Decoder, **options: float | int | None) -> Tensor:
    prompt = a_prompt(1)[:1].expand(200, -1)
    return generate(model, prompt, frames=1, tokens_per_frame=PER_FRAME, **options)  # type: ignore[arg-type]


def test_temperature_top_k_top_p_and_special_tokens() -> None:
    model = randomised(TOTO)
    p = torch.softmax(model(a_prompt(1)[:1])[0, -1].detach(), -1)
    ranked = p.argsort(descending=True)

    assert set(draw(model, top_k=3)[:, 0].tolist()) <= set(ranked[:3].tolist())
    nucleus = int((p[ranked].cumsum(0) < 0.5).sum()) + 1
    assert set(draw(model, top_p=0.5)[:, 0].tolist()) <= set(ranked[:nucleus].tolist())
    assert set(draw(model, top_k=1)[:, 0].tolist()) == {int(ranked[0])}
    assert set(draw(model, temperature=1e-4)[:, 0].tolist()) == {int(ranked[0])}
    assert draw(model, codes_from=4).min() >= 4
    assert len(set(draw(model, temperature=100.0)[:, 0].tolist())) > 25


def test_frequencies_are_the_model_s() -> None:
    model = randomised(TOTO)
    p = torch.softmax(model(a_prompt(1)[:1])[0, -1].detach(), -1)
    prompt = a_prompt(1)[:1].expand(4000, -1)
    drawn = generate(model, prompt, frames=1, tokens_per_frame=PER_FRAME, seed=3)[:, 0]
    frequency = torch.bincount(drawn, minlength=40) / 4000
    assert (frequency - p).abs().max() < 4 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("config", "prompt", "options", "message"),
    [
        (TOTO, a_prompt(1)[:, :-1], {}, "whole frames of 2 tokens"),
        (TOTO, a_prompt(1), {"top_p": 1.5}, "top_p above 0 and at most 1"),
        (TOTO, a_prompt(1), {"temperature": -1.0}, "temperature is at least 0"),
        (replace(TOTO, context=2), a_prompt(1)[:, :1], {}, "do not fit the context"),
        (replace(TOTO, attention="full"), a_prompt(1), {}, "attends in both directions"),
        (replace(TOTO, attention="prefix", prefix=9), a_prompt(1), {}, "give more frames"),
        (replace(TOTO, patch_inputs=48), a_prompt(1), {}, "only tokens can be drawn"),
    ],
)
def test_mistakes(
    config: ModelConfig, prompt: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(randomised(config), prompt, frames=1, tokens_per_frame=PER_FRAME, **options)
