"""The three families against Hugging Face's: same random weights, same logits and gradients."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from scaling.models.decoder import Decoder
from scaling.models.family import ModelConfig, size
from scaling.models.parametrization import build

TOLERANCE = 1e-5
Get = Callable[[str], Tensor]


def from_llama(get: Get, layers: int) -> dict[str, Tensor]:
    """Our parameters as functions of theirs; linear, so it maps gradients too."""
    ours = {
        "embed": get("model.embed_tokens.weight"),
        "norm": get("model.norm.weight"),
        "head": get("lm_head.weight"),
    }
    for i in range(layers):
        at = f"model.layers.{i}."
        qkv = [get(f"{at}self_attn.{x}_proj.weight") for x in "qkv"]
        gate_up = [get(f"{at}mlp.{x}_proj.weight") for x in ("gate", "up")]
        ours |= {
            f"layers.{i}.norm_attention": get(at + "input_layernorm.weight"),
            f"layers.{i}.qkv": torch.cat(qkv),
            f"layers.{i}.out": get(at + "self_attn.o_proj.weight"),
            f"layers.{i}.norm_ffn": get(at + "post_attention_layernorm.weight"),
            f"layers.{i}.gate_up": torch.cat(gate_up),
            f"layers.{i}.down": get(at + "mlp.down_proj.weight"),
        }
    return ours


def from_gpt2(get: Get, layers: int) -> dict[str, Tensor]:
    ours = {
        "embed": get("transformer.wte.weight"),
        "positions_Td": get("transformer.wpe.weight"),
        "norm": get("transformer.ln_f.weight"),
        "norm_bias": get("transformer.ln_f.bias"),
    }
    names = {
        "norm_attention": "ln_1",
        "qkv": "attn.c_attn",
        "out": "attn.c_proj",
        "norm_ffn": "ln_2",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    }
    for i in range(layers):
        for name, theirs in names.items():
            weight = get(f"transformer.h.{i}.{theirs}.weight")
            ours[f"layers.{i}.{name}"] = weight.T if weight.ndim == 2 else weight
            ours[f"layers.{i}.{name}_bias"] = get(f"transformer.h.{i}.{theirs}.bias")
    return ours


def from_mamba(get: Get, layers: int) -> dict[str, Tensor]:
    ours = {"embed": get("backbone.embeddings.weight"), "norm": get("backbone.norm_f.weight")}
    names = {
        "x_gate": "in_proj.weight",
        "conv": "conv1d.weight",
        "conv_bias": "conv1d.bias",
        "step_input_output": "x_proj.weight",
        "step": "dt_proj.weight",
        "step_bias": "dt_proj.bias",
        "log_decay": "A_log",
        "skip": "D",
        "out": "out_proj.weight",
    }
    for i in range(layers):
        at = f"backbone.layers.{i}."
        ours[f"layers.{i}.norm"] = get(at + "norm.weight")
        for name, theirs in names.items():
            value = get(at + "mixer." + theirs)
            ours[f"layers.{i}.{name}"] = value[:, 0] if value.ndim == 3 else value
    return ours


def llama(hf: ModuleType, c: ModelConfig) -> torch.nn.Module:
    model: torch.nn.Module = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            hidden_size=c.d,
            intermediate_size=c.d_ff,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            vocab_size=c.vocab,
            max_position_embeddings=c.context,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
            rms_norm_eps=1e-5,
            attn_implementation="sdpa",
        )
    )
    return model


def gpt2(hf: ModuleType, c: ModelConfig) -> torch.nn.Module:
    model: torch.nn.Module = hf.GPT2LMHeadModel(
        hf.GPT2Config(
            n_embd=c.d,
            n_layer=c.layers,
            n_head=c.heads,
            n_inner=c.d_ff,
            vocab_size=c.vocab,
            n_positions=c.context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    return model


def mamba(hf: ModuleType, c: ModelConfig) -> torch.nn.Module:
    model: torch.nn.Module = hf.MambaForCausalLM(
        hf.MambaConfig(
            hidden_size=c.d,
            num_hidden_layers=c.layers,
            vocab_size=c.vocab,
            state_size=c.state,
            use_associative_scan=False,
        )
    )
    return model


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


TOTO = size(64, 2, 4, vocab=97, context=80, parametrization="standard")
GPT2 = size(64, 2, 4, vocab=97, context=80, parametrization="standard", family="gpt2")
MAMBA = size(64, 2, 1, vocab=97, context=80, parametrization="standard", family="mamba")
CASES = {
    "llama": (TOTO, llama, from_llama),
    "llama-one-kv-head": (replace(TOTO, kv_heads=1), llama, from_llama),
    "llama-rope-50k": (replace(TOTO, rope_base=50_000.0), llama, from_llama),
    "gpt2": (replace(GPT2, positions="learned", tied=True), gpt2, from_gpt2),
    "mamba": (replace(MAMBA, tied=True), mamba, from_mamba),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("T", [40, 1, 300])  # 300: attention in rows
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_parity(transformers: ModuleType, case: str, T: int) -> None:
    config, make, from_theirs = CASES[case]
    config = replace(config, context=max(T, config.context))
    other = make(transformers, config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in other.named_parameters():
            noise = torch.randn(p.shape, generator=random)
            fan_in = p.shape[0] if "c_" in name else p[0].numel()  # GPT-2's are transposed
            if p.ndim > 1 and "A_log" not in name:
                p.copy_(noise / fan_in**0.5)
            else:
                p.add_(0.1 * noise)
    model: Decoder = build(config, seed=0)
    theirs = dict(other.named_parameters())
    weights = from_theirs(lambda n: theirs[n].detach(), config.layers)
    model.load_state_dict(weights | ({"head": weights["embed"]} if config.tied else {}))

    tokens = torch.randint(config.vocab, (3, T + 1), generator=random)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits = other(input_ids=inputs).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    model.loss(inputs, targets).backward()

    assert relative_error(model(inputs).detach(), logits.detach()) <= TOLERANCE

    def gradient(name: str) -> Tensor:
        g = theirs[name].grad
        return torch.zeros_like(theirs[name]) if g is None else g

    gradients = from_theirs(gradient, config.layers)
    for name, p in model.named_parameters():
        assert p.grad is not None
        if gradients[name].abs().max() > 1e-7 or p.grad.abs().max() > 1e-7:
            assert relative_error(p.grad, gradients[name]) <= TOLERANCE, name
