#!/usr/bin/env bash
# transformers 5.24.0 (accelerate 1.15.0, torch 2.13.0), `total_flos` of trainer_state.json.
#
# Guess: two models with the same matrix products have the same total_flos, whether the output layer
# shares the embedding's weights or has its own.
# Seen: total_flos is 6 x tokens x the parameters without embeddings, and a tied output layer counts
# as embedding. It is less by 6 x tokens x width x vocabulary, although the products are the same.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu ||
  "$work/venv/bin/pip" install --quiet "torch==2.13.0" # where that index is out of reach
"$work/venv/bin/pip" install --quiet "transformers==5.24.0" "accelerate==1.15.0" "numpy==2.4.*"
cd "$work"
"$work/venv/bin/python" - <<'PY' 2>"$work/log" || { tail "$work/log" >&2; exit 1; }
import json
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

VOCABULARY, WIDTH, TOKENS = 500, 16, 8 * 4 * 16  # steps, sequences a step, length
ids = torch.zeros(16, dtype=torch.long)
flos, counted = {}, {}
for tied in (False, True):
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied,
    ))
    with FlopCounterMode(display=False) as counter:
        model(ids[None])
    counted[tied] = counter.get_total_flops()
    arguments = TrainingArguments(
        f"tied-{tied}", per_device_train_batch_size=4, max_steps=8, save_steps=8, use_cpu=True,
        report_to=[], disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 32).train()
    state = Path(f"tied-{tied}/checkpoint-8/trainer_state.json")
    flos[tied] = json.loads(state.read_text())["total_flos"]
    print(f"transformers 5.24.0: tied {tied}: total_flos {flos[tied]:.0f}; "
          f"one forward pass, by torch: {counted[tied]}")
same = counted[False] == counted[True]
sys.exit(not (same and flos[False] - flos[True] == 6 * TOKENS * WIDTH * VOCABULARY))
PY
