"""What a model costs, in closed form: multiply-accumulates and parameters, by term.

A MAC is one multiply-accumulate; FLOPs = 2 MACs; training = 3 x forward (the backward pass forms
two products for each of the forward's). Look-ups, norms, rotary positions and softmax count 0.
"""

from __future__ import annotations

from scaling.models.family import FAMILY, MAMBA_CONV, PRINTED_PARAMETERS, ModelConfig, named


def attended_pairs(config: ModelConfig, positions: int) -> int:
    """How many (query, key) pairs of one sequence and head are seen."""
    if config.attention == "full":
        return positions**2
    prefix = min(config.prefix, positions)
    return (positions * (positions + 1) + prefix * (prefix - 1)) // 2


def forward_macs(config: ModelConfig, positions: int) -> dict[str, int]:
    """MACs of ONE sequence's forward pass: {"qkvo", "attention", "ffn", "head"}.

    qkvo: the mixer's projections. attention: the mixing of positions, pair by pair as the mode lets
    through (causally layers * d * T * (T + 1)); for mamba its convolution and the product that
    reads the state. head: the readout, and the embedding of patches (a look-up costs nothing).

    >>> forward_macs(FAMILY["t16"], positions=129)
    {'qkvo': 264192, 'attention': 536640, 'ffn': 544896, 'head': 1065024}
    """
    matrices = _matrices(config)
    if config.family == "mamba":
        mixing = positions * config.d_ff * (MAMBA_CONV + config.state)
    else:
        mixing = 2 * config.d * attended_pairs(config, positions)
    return {
        "qkvo": positions * config.layers * matrices["qkvo"],
        "attention": config.layers * mixing,
        "ffn": positions * config.layers * matrices["ffn"],
        "head": positions * (matrices["head"] + config.d * config.patch_inputs),
    }


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters by convention ("all", "non_embedding", "matmul_head") and by group.

    non_embedding leaves out every matrix with a vocabulary side and absolute positions (Kaplan et
    al. 2020); matmul_head counts what a token is multiplied with: hidden matrices and the readout.
    Groups: embedding (with learned positions), qkvo, ffn, other (gains, biases, a state space's
    vectors), head.
    """
    d, layers, matrices = config.d, config.layers, _matrices(config)
    if config.family == "toto":
        other = layers * 2 * d + d
    elif config.family == "gpt2":
        biases = d + 2 * config.kv_heads * config.head_dim + d + config.d_ff + d
        other = layers * (4 * d + biases) + 2 * d
    else:  # norm; convolution and its bias, step bias, decay, skip
        other = layers * (d + config.d_ff * (MAMBA_CONV + 3 + config.state)) + d
    embedding = d * (config.patch_inputs + 1 if config.patch_inputs else config.vocab)
    if config.family == "gpt2" and config.positions == "learned":
        embedding += d * config.context
    groups = {
        "embedding": embedding,
        "qkvo": layers * matrices["qkvo"],
        "ffn": layers * matrices["ffn"],
        "other": other,
        "head": 0 if config.tied else matrices["head"],
    }
    hidden = groups["qkvo"] + groups["ffn"]
    return {
        "all": sum(groups.values()),
        "non_embedding": hidden + other,
        "matmul_head": hidden + matrices["head"],
    } | groups


def _matrices(config: ModelConfig) -> dict[str, int]:
    """Entries of the matrices that a token is multiplied with: per layer, and of the readout."""
    d, d_ff = config.d, config.d_ff
    if config.family == "mamba":
        rank = config.step_rank
        qkvo, ffn = 3 * d * d_ff + d_ff * (rank + 2 * config.state) + rank * d_ff, 0
    else:
        qkvo = 2 * d * d + 2 * d * config.kv_heads * config.head_dim
        ffn = (3 if config.family == "toto" else 2) * d * d_ff
    return {"qkvo": qkvo, "ffn": ffn, "head": d * (config.patch_targets or config.vocab)}


def models_table(names: list[str] | None = None) -> list[dict[str, object]]:
    """One row a size for `scaling models`: shape, parameters, MACs a token, the paper's count.

    MACs per token are those of a forward pass over the full context, divided by its positions.
    """
    rows = []
    for name in names or FAMILY:
        config = named(name)
        counts = parameter_counts(config)
        macs = forward_macs(config, config.context)
        printed = PRINTED_PARAMETERS.get(name)
        rows.append(
            {"name": name}
            | {k: getattr(config, k) for k in ("d", "layers", "heads", "d_ff", "vocab", "context")}
            | {f"params_{k}": counts[k] for k in ("all", "non_embedding", "matmul_head")}
            | {f"macs_{k}": v / config.context for k, v in macs.items()}
            | {"macs_total": sum(macs.values()) / config.context}
            | {
                "printed": printed,
                "difference": None if printed is None else counts["all"] / printed - 1,
            }
        )
    return rows
