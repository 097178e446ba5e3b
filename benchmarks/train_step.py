"""One training step: this repository's model against the same model in other libraries.

    python benchmarks/train_step.py --size a1 --context 1024 4096
    python benchmarks/train_step.py --device cuda --size a1 a2 a3 a4 a5 a6 --context 4096

Forward, backward and fused AdamW on the same random tokens. Every variant lives in a process of its
own, and the processes take turns, so that a change of the machine's pace meets all of them; ratios
are medians over rounds of a variant's time against Hugging Face's in the same round. Peers:
  hf       transformers.LlamaForCausalLM, attention by sdpa
  litgpt   litgpt.model.GPT as a LLaMA of the same shape (--litgpt DIR: where `pip install --target`
           put it, as its pins clash with those of transformers)
  nanogpt  nanoGPT's model.py (--nanogpt PATH): GPT-2's feed-forward, so it has fewer MACs
What is not installed is named and left out. "+compile" and "+bf16" (autocast) are variants; here,
compile is what training does: each block. On a GPU a variant keeps only weights and moments while
the others take their turn, and the batch is the largest power of two whose estimated step fits
beside them (--batch sets it). The share of peak is causal training MACs (3 x forward) a second over
the fastest of a few matrix products, float32 or bfloat16 as the variant computes.
--curve N trains the size N steps on built-in video twice, in float32 and as the fastest variant,
and prints how far apart the losses are.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import importlib.util
import multiprocessing
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import distributions
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from scaling.data.sample import sample_tokens
from scaling.models.family import FAMILY, ModelConfig
from scaling.models.macs import forward_macs, parameter_counts
from scaling.models.memory import device_bytes, peak_bytes, training_bytes
from scaling.models.parametrization import build, optimizer

DEFAULT = {
    "cpu": [
        "here",
        "here+compile",
        "hf",
        "litgpt",
        "here+bf16",
        "here+compile+bf16",
        "hf+bf16",
        "litgpt+bf16",
    ],
    # What each library does best; more than these do not share a GPU's memory at the larger sizes.
    "cuda": ["here+compile+bf16", "hf+bf16", "hf+compile+bf16", "litgpt+compile+bf16"],
}
Loss = Callable[[Tensor, Tensor], Tensor]


def here(config: ModelConfig, device: str) -> tuple[nn.Module, Loss]:
    model = build(config, seed=0, device=device)
    return model, model.loss


def hf(config: ModelConfig, device: str) -> tuple[nn.Module, Loss]:
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
    pipe: Connection, variant: str, config: ModelConfig, batch: int, options: argparse.Namespace
) -> None:
    """Builds one variant and runs as many steps as it is told to, again and again."""
    try:
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        name, *flags = variant.split("+")
        device = options.device
        # A torchvision that does not match torch must not stop the peers, which can do without.
        sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
        if name == "nanogpt":
            model, loss_of = nanogpt(config, device, options.nanogpt)
        else:
            if name == "litgpt" and options.litgpt:
                sys.path.insert(0, options.litgpt)
            model, loss_of = {"here": here, "hf": hf, "litgpt": litgpt}[name](config, device)
        if name == "here":
            adam = optimizer(model, lr=1e-3, weight_decay=0.1)
        else:
            adam = torch.optim.AdamW(
                model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), fused=True
            )
        if "compile" in flags and name == "here":
            model.compile()
        elif "compile" in flags:
            loss_of = torch.compile(loss_of)
        model.train()
        shape = batch, config.context + 1
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
        release(device)
        pipe.send("ready")
        while (steps := pipe.recv()) > 0:
            if device == "cuda":
                step()  # takes back the memory that the others used
            synchronise(device)
            started = time.perf_counter()
            for _ in range(steps):
                step()
            synchronise(device)
            taken = (time.perf_counter() - started) / steps
            release(device)
            pipe.send(taken)
        if device == "cuda":
            pipe.send(torch.cuda.max_memory_allocated())
        else:
            pipe.send(peak_bytes())
    except (Exception, KeyboardInterrupt):
        pipe.send(traceback.format_exc().strip().splitlines()[-1])


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Gives the activations' memory to the variant whose turn is next."""
    synchronise(device)
    if device == "cuda":
        torch.cuda.empty_cache()


def fitting_batch(config: ModelConfig, variants: list[str], options: argparse.Namespace) -> int:
    """Sequences of a step: as given, else 1 on a CPU, on a GPU what fits beside all variants."""
    if options.batch or options.device == "cpu":
        return options.batch or 1
    free = 0.9 * device_bytes(torch.device("cuda"))
    kept = 12 * parameter_counts(config)["all"] * len(variants)
    for batch in (16, 8, 4, 2):
        step = training_bytes(config, batch, bf16=True)
        # The peers hold all logits, in both precisions, and their gradient.
        logits = 12 * batch * config.context * config.vocab
        if kept + 1.5 * step["activations"] + step["gradients"] + logits < free:
            return batch
    return 1


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
    batch = fitting_batch(config, variants, options)
    pipes: dict[str, Connection] = {}
    for variant in variants:
        pipe, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, variant, config, batch, options))
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

    macs = 3 * batch * sum(forward_macs(config, config.context).values())
    dtypes = {"bf16": torch.bfloat16, "": torch.float32}
    peaks = {k: gemm_peak(options.device, dtype) for k, dtype in dtypes.items()}
    print(
        f"\n{config.name} (d {config.d}, {config.layers} layers, {config.heads} heads, vocabulary "
        f"{config.vocab}), context {config.context}, batch {batch}, {options.rounds} "
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
            f"| {variant} | {batch * config.context / middle:,.0f} | {ratios[0]} "
            f"| {ratios[1]} | {cost} | {memory[variant] / 1e9:.2f} |"
        )


def curve(config: ModelConfig, options: argparse.Namespace) -> None:
    """Losses of the same training in float32 and as the fastest variant computes."""
    data_BT, vocab = sample_tokens(sequences=64)
    small = dataclasses.replace(config, vocab=vocab, context=data_BT.shape[1] - 1)
    losses = {}
    for flags in ("", "compile+bf16"):
        model = build(small, seed=0, device=options.device)
        adam = optimizer(model, lr=2**-8, weight_decay=0.1)
        if flags:
            model.compile()
        order = torch.Generator().manual_seed(0)
        found = []
        for _ in range(options.curve):
            tokens = data_BT[torch.randperm(64, generator=order)[:16]].to(options.device)
            with torch.autocast(options.device, dtype=torch.bfloat16, enabled=bool(flags)):
                loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            adam.step()
            adam.zero_grad(set_to_none=True)
            found.append(loss.detach())
        losses[flags] = torch.stack(found).cpu()
    full, fast = losses[""], losses["compile+bf16"]
    tail = slice(-max(2, options.curve // 10), None)
    noise = float((full[1:] - full[:-1])[tail].std() / 2**0.5)  # of one step's batch
    apart = float((fast - full)[tail].mean())
    print(
        f"\n{config.name}, {options.curve} steps on built-in video: loss {full[0]:.4f} to "
        f"{full[tail].mean():.4f} in float32, {fast[tail].mean():.4f} compiled in bfloat16: "
        f"{apart:+.4f} nats/token, where one batch differs from the next by {noise:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--size", default=["a1"], choices=FAMILY, nargs="+")
    parser.add_argument("--context", type=int, nargs="+", default=[1024])
    parser.add_argument("--batch", type=int, help="sequences of a step")
    parser.add_argument("--vocab", type=int, help="instead of the size's own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="a round, of each variant; 1, on a GPU 5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", nargs="+")
    parser.add_argument("--litgpt", help="folder that litgpt is installed in")
    parser.add_argument("--nanogpt", help="path of nanoGPT's model.py")
    parser.add_argument("--curve", type=int, default=0, help="steps of the comparison of losses")
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.steps = options.steps or (5 if options.device == "cuda" else 1)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    chosen = options.variants or DEFAULT[options.device]
    if options.nanogpt and not options.variants:
        chosen = [*chosen, *(v.replace("litgpt", "nanogpt") for v in chosen if "litgpt" in v)]
    variants: list[str] = []
    for variant in chosen:
        name = variant.split("+")[0]
        library = {"hf": "transformers", "litgpt": "litgpt"}.get(name)
        there = (
            not library or importlib.util.find_spec(library) or (options.litgpt and name != "hf")
        )
        if there:
            variants.append(variant)
        else:
            print(f"{variant}: left out (no {library}; pip install {library})")
    versions: dict[str, Any] = {"torch": torch.__version__}
    for library in ("transformers", "litgpt"):
        found = list(distributions(name=library, path=[*sys.path, options.litgpt or ""]))
        if found:
            versions[library] = found[0].version
    chip = torch.cuda.get_device_name() if options.device == "cuda" else cpu_name()
    print(
        f"{datetime.date.today()}; {chip}, {options.threads} threads; Python "
        f"{platform.python_version()}, " + ", ".join(f"{k} {v}" for k, v in versions.items())
    )
    for size in options.size:
        for positions in options.context:
            config = dataclasses.replace(FAMILY[size], context=positions)
            if options.vocab:
                config = dataclasses.replace(config, vocab=options.vocab)
            compare(config, variants, options)
        if options.curve:
            curve(config, options)


def cpu_name() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
