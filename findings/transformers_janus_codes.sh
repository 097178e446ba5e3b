#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0), JanusVQVAE: the image tokenizer of Janus.
#
# Guess: encode(x).image_tokens are the codes that Janus's own VQ model gives for the same weights.
# Seen: Janus's own code brings vectors and table to unit length before it takes the nearest; the
# port's quantiser takes the nearest as they are, while its decode does bring the table to unit
# length. So a table that is scaled decodes to the same picture, and encode gives other codes; of a
# table of several lengths a third of the codes agree here, 0.9% with the published 16,384 codes. What
# is generated (decode alone) is right; tokens of one's own images are not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu ||
  "$work/venv/bin/pip" install --quiet "torch==2.13.0" # where that index is out of reach
"$work/venv/bin/pip" install --quiet "transformers==5.24.0" "numpy==2.4.*"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import torch.nn.functional as F
import transformers
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

assert transformers.__version__ == "5.24.0"
torch.manual_seed(0)
config = JanusVQVAEConfig(num_embeddings=1024, channel_multiplier=[1, 1], num_patches=32)
model = JanusVQVAE(config).eval()
images = 2 * torch.rand(2, 3, 64, 64) - 1
with torch.no_grad():
    vectors = model.quant_conv(model.encoder(images)).permute(0, 2, 3, 1).reshape(-1, 8)
    chosen = vectors[torch.randint(len(vectors), (1024,))]
    table = chosen * (0.5 + 2 * torch.rand(1024, 1)) + 0.1 * vectors.std() * torch.randn(1024, 8)
    model.quantize.embedding.weight.copy_(table)
    codes = model.encode(images).image_tokens.reshape(-1)
    unit = torch.cdist(F.normalize(vectors, dim=1), F.normalize(table, dim=1)).argmin(1)
    raw = torch.cdist(vectors, table).argmin(1)
    picture = model.decode(unit.reshape(2, -1))
    model.quantize.embedding.weight.mul_(3)
    same_picture = torch.allclose(model.decode(unit.reshape(2, -1)), picture, atol=1e-4)
    other = model.encode(images).image_tokens.reshape(-1)

share = [float((codes == found).float().mean()) for found in (unit, raw, other)]
print(f"of its codes {share[0]:.1%} are the nearest of unit length, {share[1]:.1%} the nearest raw")
print(f"the table three times as long: the same picture {same_picture}, {share[2]:.1%} of the codes")
if not (share[0] < 0.6 and share[1] > 0.999 and same_picture and share[2] < 0.6):
    print("changed: JanusVQVAE encodes or decodes otherwise than stated above")
    sys.exit(1)
PY
