#!/usr/bin/env bash
# transformers 5.24.0 (accelerate 1.15.0, torch 2.13.0), eval_loss of Trainer.evaluate().
#
# Guess: the loss a label over the whole set, as the training loss has been since it is divided by
# the labels of a step; the batch size changes nothing but speed.
# Seen: every batch's own mean counts by its number of sequences, not of labels. Where sequences
# have unequal numbers of labels (padding, masked prompts), the same model on the same data has
# another eval_loss at every per_device_eval_batch_size; it is right where one batch holds all.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu ||
  "$work/venv/bin/pip" install --quiet "torch==2.13.0" # where that index is out of reach
"$work/venv/bin/pip" install --quiet "transformers==5.24.0" "accelerate==1.15.0" "numpy==2.4.*"
cd "$work"
"$work/venv/bin/python" - <<'PY' 2>"$work/log" || { tail "$work/log" >&2; exit 1; }
import math
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

torch.manual_seed(0)
LENGTH, LABELS = 32, (2, 2, 2, 32, 2, 32, 32, 32)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, initializer_range=1.0,
)).eval()
data, total, count = [], 0.0, 0
for labelled in LABELS:
    ids = torch.randint(50, (LENGTH,))
    labels = ids.clone()
    labels[labelled:] = -100
    data.append({"input_ids": ids, "labels": labels})
    with torch.no_grad():
        mean = model(input_ids=ids[None], labels=labels[None]).loss.item()
    total, count = total + mean * (labelled - 1), count + labelled - 1
seen = {}
for batch in (1, 2, 4, 8):
    arguments = TrainingArguments(
        "out", per_device_eval_batch_size=batch, use_cpu=True, report_to=[], disable_tqdm=True
    )
    seen[batch] = Trainer(model, arguments, eval_dataset=data).evaluate()["eval_loss"]
    print(f"transformers 5.24.0: batches of {batch}: eval_loss {seen[batch]:.4f}; "
          f"sum over labels / labels: {total / count:.4f}")
apart = len({round(loss, 2) for loss in seen.values()}) == 4
if not (apart and math.isclose(seen[8], total / count, rel_tol=1e-4)):
    print("changed: eval_loss depends on the batch size otherwise than stated above")
    sys.exit(1)
PY
