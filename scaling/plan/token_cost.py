"""What a study's tokens cost: how many, of which source, on disk, and the GPU-hours to make them.

Counted for the longest run as if no source were gone through twice: an upper bound for the encoder.
"""

from __future__ import annotations

import math
from pathlib import Path

from scaling.config.schema import StudyConfig, TokenizerConfig, variant_studies
from scaling.data import shards
from scaling.models.macs import forward_macs
from scaling.plan.cost import Cost
from scaling.plan.runs import context, data_of, every_cell, ladder_model, ladder_runs

PAPER_FPS = 30.0  # frames a second of video; Table 2 of the paper counts its hours with it
TF32 = 0.5  # tensor cores multiply TF32 half as fast as bf16 (NVIDIA's data sheets, A100 to H200)


def lines(config: StudyConfig, costs: list[Cost]) -> list[str]:
    """The plan's paragraphs about tokens and GPU-hours; without the latter where no speed is given.

    `costs` are those of `plan.study_cost`.
    """
    if config.ladder is None:
        return []
    if config.variants:
        alike: dict[str, dict[str, StudyConfig]] = {}
        for name, one in variant_studies(config).items():
            alike.setdefault(data_of(one), {})[name] = one
        told = []
        for group in alike.values():
            longest = max(group.values(), key=_wanted)
            told += [f"{', '.join(group)}:", *_tokens(longest, _wanted(longest))]
        return told
    return _tokens(config, _wanted(config)) + _speed(config, _wanted(config), costs)


def _wanted(config: StudyConfig) -> int:
    """Tokens of the longest run; of a ladder that places its own runs, of the longest it may."""
    ladder, _ = ladder_runs(config, 1.0, "", Path(), every_cell(config))
    longest = max((r.budgets_steps[-1] * r.batch * r.model.context for r in ladder), default=0)
    return max(longest, int((config.ladder and config.ladder.max_tokens) or 0))


def page(config: Path, path: Path, told: list[str]) -> str:
    """The plan as a Markdown page, for `path`, that says how it was made."""
    return (
        f"# The plan of `{config}`\n\nMade by this command, and held to what it prints by a test:"
        f"\n\n```\nscaling plan {config} --no-measure --page {path}\n```\n\n"
        "```text\n" + "\n".join(told) + "\n```\n"
    )


def _tokens(config: StudyConfig, wanted: int) -> list[str]:
    """By source: share, tokens, sequences, frames, hours or images, bytes, shards."""
    data = config.data
    width = data.frames * (data.size // config.tokenizer.patch) ** 2 + 2
    per_shard = max(1, shards.SHARD_BYTES // (2 * width))
    whole = sum(source.weight for source in data.sources)
    out = [
        f"tokens: {wanted:.4g} for the longest run, {width - 1:,} positions a sequence; if nothing "
        "were seen twice:",
        f"{'source':16}{'share':>7}{'tokens':>11}{'sequences':>14}{'frames':>11}{'material':>22}"
        f"{'disk':>13}{'shards':>8}",
    ]
    total_bytes = total_shards = 0
    for source in data.sources:
        share = source.weight / whole
        sequences = math.ceil(share * wanted / (width - 1))
        frames = sequences * data.frames
        size, files = 2 * width * sequences, -(-sequences // per_shard)
        total_bytes, total_shards = total_bytes + size, total_shards + files
        material = "built in"
        if source.kind == "images":
            material = f"{frames:.3g} images"
        elif source.kind == "tokens":
            material = "ready tokens"
        elif source.kind == "video":
            hours = frames * data.stride / (data.fps or PAPER_FPS) / 3600
            material = f"{hours:,.0f} h of video"
        out.append(
            f"{source.name[:15]:16}{share:>7.1%}{share * wanted:>11.3g}{sequences:>14,}"
            f"{frames:>11.3g}{material:>22}{size / 1e9:>10,.1f} GB{files:>8,}"
        )
    clock = f"{data.fps or PAPER_FPS:g} frames a second"
    if data.fps is None:
        clock += ", as the paper's Table 2 counts"
    out.append(
        f"all: {total_bytes / 1e9:,.1f} GB in {total_shards:,} shards of at most "
        f"{shards.SHARD_BYTES / 2**30:g} GiB; one frame of {data.stride}, at {clock}"
    )
    return out


def _speed(config: StudyConfig, wanted: int, costs: list[Cost]) -> list[str]:
    """GPU-hours of the encoder and of each size, by launch.gpu_macs_per_second."""
    launch = config.launch
    if launch.gpu_macs_per_second is None:
        return []
    speed = launch.gpu_macs_per_second
    frame_macs, what = encoder_macs(config.tokenizer, config.data.size)
    frames = wanted / (context(config) / config.data.frames)
    hours = frames * frame_macs / (TF32 * speed) / 3600
    jobs = launch.parallel or 64
    out = [
        f"speed: {speed:.4g} MACs/s of one GPU in bf16, the encoder in TF32 at {TF32:g} of it",
        f"from:  {launch.gpu_speed_from}",
        f"encoding: {frames:.4g} frames x {frame_macs:.4g} MACs ({what}): {hours:,.0f} GPU-hours; "
        f"{jobs} jobs (launch.parallel) of {hours / jobs:,.1f} h on one GPU; decoding is CPU work "
        "beside it",
        f"{'training':10}{'size':>12}{'runs':>6}{'GPU-hours':>12}{f'{wanted:.3g} tokens':>16}",
    ]
    for cost in costs:
        once = "-"
        if cost.role == "ladder":
            model = ladder_model(config, cost.size)
            per_token = 3 * sum(forward_macs(model, model.context).values()) / model.context
            once = f"{per_token * wanted / speed / 3600:,.0f}"
        out.append(
            f"{cost.role:10}{cost.size:>12}{cost.runs:>6}{cost.macs / speed / 3600:>12,.1f}"
            f"{once:>16}"
        )
    total = sum(cost.macs for cost in costs) / speed / 3600
    out.append(f"{'all':10}{'':>12}{sum(cost.runs for cost in costs):>6}{total:>12,.1f}")
    return out


def encoder_macs(config: TokenizerConfig, size: int) -> tuple[int, str]:
    """MACs to encode one frame of `size` px, and of which encoder; counted, not run.

    Weights that are not here are taken to be the published ones of that many pixels and codes.
    """
    if config.kind == "given":
        return 0, "made elsewhere"
    if config.kind == "codebook":
        squares = (size // config.patch) ** 2
        return squares * config.codes * 3 * config.patch**2, "k-means, nearest centroid"
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from scaling.models.tokenizers import train, weights
    from scaling.models.tokenizers.dvae import DVAE
    from scaling.models.tokenizers.vqgan import PUBLISHED, VQGAN

    model: DVAE | VQGAN
    with torch.device("meta"):
        if config.weights is None:
            make = train.small_dvae if config.kind == "dvae" else train.small_vqgan
            model = make(config.codes, config.patch, config.width)
            what = f"a {config.kind} of width {config.width}"
        elif config.weights.exists():
            with torch.device("cpu"):
                model = weights.load(config.weights).to("meta")
            what = f"{config.weights.name}"
        elif config.kind == "dvae":
            model, what = DVAE(config.codes), f"the published dVAE of {config.codes:,} codes"
        else:
            name = "taming-f16-1024" if config.codes == 1024 else "taming-f16-16384"
            name = "ldm-f8" if config.patch == 8 else name
            model, what = VQGAN(PUBLISHED[name]), f"the published {name}"
        image = torch.empty(1, 3, size, size)
        with FlopCounterMode(display=False) as counted:
            model.logits(image) if isinstance(model, DVAE) else model.nearest(model.vectors(image))
    return counted.get_total_flops() // 2, what
