"""One training step: this repository's model against the same model in other libraries.

    pip install transformers litgpt
    python benchmarks/train_step.py --size a1 --context 1024 4096
    python benchmarks/train_step.py --size a4 --context 4096 --batch 8      (on a GPU)

Forward, backward and fused AdamW on the same random tokens. Every variant lives in a process of its
own, and the processes take turns, so that a change of the machine's pace meets all of them; ratios
are medians over rounds of a variant's time against Hugging Face's in the same round. Peers:
  hf       transformers.LlamaForCausalLM, attention by sdpa
  litgpt   litgpt.model.GPT as a LLaMA of the same shape
  nanogpt  nanoGPT's model.py (--nanogpt PATH): GPT-2's feed-forward, so it has fewer MACs
What is not installed is named and left out. "+compile" and "+bf16" (autocast) are variants.
The share of peak is causal training MACs (3 x forward) a second over the fastest of a few matrix
products, float32 or bfloat16 as the variant computes.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import importlib.util
import multiprocessing
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from models.family import FAMILY, ModelConfig
from models.macs import forward_macs
from models.parametrization import build, optimizer

PEERS = ("hf", "litgpt", "nanogpt")
Loss = Callable[[Tensor, Tensor], Tensor]


def here(config: ModelConfig, device: str) -> tuple[nn.Module, Loss]:
    model = build(config, seed=0, device=device)
    return model, model.loss


def hf(config: ModelConfig, device: str) -> tuple[nn.Module, Loss]:
    # A torchvision that does not match torch must not stop transformers, which can do without.
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    transformers: Any = importlib.import_module("transformers")
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=config.d,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            vocab_size=config.vocab,
            max_position_embeddings=config.context,
            attn_implementation="sdpa",
            use_cache=False,
        )
    ).to(device)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=inputs).logits
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return model, loss


def litgpt(config: ModelConfig, device: str) -> tuple[nn.Module, Loss]:
    library: Any = importlib.import_module("litgpt")
    model = library.GPT(
        library.Config(
            name="benchmark",
            block_size=config.context,
            n_layer=config.layers,
            n_head=config.heads,
            n_query_groups=config.kv_heads,
            n_embd=config.d,
            intermediate_size=config.d_ff,
            padded_vocab_size=config.vocab,
            vocab_size=config.vocab,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
        )
    ).to(device)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs)
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return model, loss


def nanogpt(config: ModelConfig, device: str, path: str) -> tuple[nn.Module, Loss]:
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    model = module.GPT(
        module.GPTConfig(
            block_size=config.context,
            vocab_size=config.vocab,
            n_layer=config.layers,
            n_head=config.heads,
            n_embd=config.d,
            dropout=0.0,
            bias=False,
        )
    ).to(device)
    return model, lambda inputs, targets: model(inputs, targets)[1]


def worker(
    pipe: Connection, variant: str, config: ModelConfig, options: argparse.Namespace
) -> None:
    """Builds one variant and runs as many steps as it is told to, again and again."""
    try:
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        name, *flags = variant.split("+")
        device = options.device
        if name == "nanogpt":
            model, loss_of = nanogpt(config, device, options.nanogpt)
        else:
            model, loss_of = {"here": here, "hf": hf, "litgpt": litgpt}[name](config, device)
        if name == "here":
            adam = optimizer(model, lr=1e-3, weight_decay=0.1)
        else:
            adam = torch.optim.AdamW(
                model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), fused=True
            )
        if "compile" in flags and name == "here" and device == "cpu":
            model.compile()
        elif "compile" in flags:
            loss_of = torch.compile(loss_of)
        model.train()
        shape = options.batch, config.context + 1
        tokens = torch.randint(config.vocab, shape, device=device)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

        def step() -> None:
            with torch.autocast(device, dtype=torch.bfloat16, enabled="bf16" in flags):
                loss = loss_of(inputs, targets)
            loss.backward()
            adam.step()
            adam.zero_grad(set_to_none=True)

        step()
        step()
        pipe.send("ready")
        while (steps := pipe.recv()) > 0:
            synchronise(device)
            started = time.perf_counter()
            for _ in range(steps):
                step()
            synchronise(device)
            pipe.send((time.perf_counter() - started) / steps)
        if device == "cuda":
            pipe.send(torch.cuda.max_memory_allocated())
        else:
            pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except (Exception, KeyboardInterrupt):
        pipe.send(traceback.format_exc().strip().splitlines()[-1])


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def gemm_peak(device: str, dtype: torch.dtype) -> float:
    """MACs a second of the fastest of a few square matrix products."""
    best = 0.0
    for n in (1024, 2048, 4096) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        for _ in range(8):
            synchronise(device)
            started = time.perf_counter()
            a @ b
            synchronise(device)
            best = max(best, n**3 / (time.perf_counter() - started))
    return best


def compare(config: ModelConfig, variants: list[str], options: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for variant in variants:
        pipe, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, variant, config, options))
        process.daemon = True
        process.start()
        answer = pipe.recv()  # one after the other, so that compilations do not compete
        if answer == "ready":
            pipes[variant] = pipe
        else:
            print(f"{variant}: left out ({answer})")
    times: dict[str, list[float]] = {variant: [] for variant in pipes}
    for _ in range(options.rounds):
        for variant, pipe in pipes.items():
            pipe.send(options.steps)
            times[variant].append(pipe.recv())
    memory = {}
    for variant, pipe in pipes.items():
        pipe.send(0)
        memory[variant] = pipe.recv()

    macs = 3 * options.batch * sum(forward_macs(config, config.context).values())
    dtypes = {"bf16": torch.bfloat16, "": torch.float32}
    peaks = {k: gemm_peak(options.device, dtype) for k, dtype in dtypes.items()}
    print(
        f"\n{config.name} (d {config.d}, {config.layers} layers, {config.heads} heads, vocabulary "
        f"{config.vocab}), context {config.context}, batch {options.batch}, {options.rounds} "
        f"rounds of {options.steps}; GEMM peak {peaks[''] / 1e9:.0f} float32, "
        f"{peaks['bf16'] / 1e9:.0f} bfloat16 GMAC/s\n"
        "\n| variant | tokens/s | x hf | x hf+bf16 | GMAC/s | share of peak | peak memory, GB |"
        "\n|---|---|---|---|---|---|---|"
    )
    for variant, seconds in times.items():
        middle = statistics.median(seconds)
        ratios = []
        for base in ("hf", "hf+bf16"):
            if base in times:
                pairs = zip(times[base], seconds, strict=True)
                ratios.append(f"{statistics.median(b / s for b, s in pairs):.2f}")
            else:
                ratios.append("-")
        rate, peak = macs / middle, peaks["bf16" if "bf16" in variant else ""]
        cost = "- | -" if variant.startswith("nanogpt") else f"{rate / 1e9:.1f} | {rate / peak:.0%}"
        print(
            f"| {variant} | {options.batch * config.context / middle:,.0f} | {ratios[0]} "
            f"| {ratios[1]} | {cost} | {memory[variant] / 1e9:.2f} |"
        )


def main() -> None:
    default = ["here", "here+compile", "here+bf16", "here+compile+bf16"]
    default += ["hf", "hf+bf16", "hf+compile+bf16", "litgpt", "litgpt+bf16"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="a1", choices=FAMILY)
    parser.add_argument("--context", type=int, nargs="+", default=[1024])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--vocab", type=int, help="instead of the size's own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="a round, of each variant")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", nargs="+", default=default)
    parser.add_argument("--nanogpt", help="path of nanoGPT's model.py")
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.nanogpt:
        options.variants += ["nanogpt", "nanogpt+bf16"]
    variants: list[str] = []
    for variant in options.variants:
        library = {"hf": "transformers", "litgpt": "litgpt"}.get(variant.split("+")[0])
        if library and importlib.util.find_spec(library) is None:
            print(f"{variant}: left out (no {library}; pip install {library})")
        else:
            variants.append(variant)
    versions: dict[str, Any] = {"torch": torch.__version__}
    for library in ("transformers", "litgpt"):
        if importlib.util.find_spec(library):
            versions[library] = version(library)
    chip = torch.cuda.get_device_name() if options.device == "cuda" else cpu_name()
    print(
        f"{datetime.date.today()}; {chip}, {options.threads} threads; Python "
        f"{platform.python_version()}, " + ", ".join(f"{k} {v}" for k, v in versions.items())
    )
    for positions in options.context:
        config = dataclasses.replace(FAMILY[options.size], context=positions)
        if options.vocab:
            config = dataclasses.replace(config, vocab=options.vocab)
        compare(config, variants, options)


def cpu_name() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
