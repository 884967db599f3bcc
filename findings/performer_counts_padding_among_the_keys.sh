#!/usr/bin/env bash
# performer-pytorch 1.1.4 takes a mask, hides the values of padding with it, and goes on to count its keys.
#
# Linear attention divides by the sum of the keys' features. `Performer(...)(x, mask=mask)` sets padded *values* to zero
# and sums *all* keys: every padded step, even one of zeros, makes the answers of the valid steps smaller. Keys are also
# scaled by the largest number of the whole padded tensor, so what stands in the padding matters on top of how much there
# is. Other linear attention of the same author (linear-attention-transformer 0.19.1) masks the keys and is right.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 performer-pytorch==1.1.4 linear-attention-transformer==0.19.1
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from linear_attention_transformer import LinearAttentionTransformer
from performer_pytorch import Performer

torch.manual_seed(0)
steps = torch.randn(1, 5, 32)
mask = torch.tensor([[True] * 5 + [False] * 4])
zeros = torch.cat([steps, torch.zeros(1, 4, 32)], 1)
others = torch.cat([steps, torch.randn(1, 4, 32) * 50], 1)


def moved(model, keyword):
    """How far padding of zeros, and padding of other numbers, moves the answers of the five valid steps."""
    model.eval()
    with torch.no_grad():
        alone = model(steps, **{keyword: mask[:, :5]})
        return [float((model(padded, **{keyword: mask})[:, :5] - alone).abs().max()) for padded in (zeros, others)]


performer = moved(Performer(dim=32, depth=1, heads=4, dim_head=8), "mask")
linear = moved(LinearAttentionTransformer(dim=32, depth=1, max_seq_len=64, heads=4), "input_mask")
print("performer-pytorch moves valid steps by", performer, "linear-attention-transformer by", linear)
assert min(performer) > 0.01 and max(linear) < 1e-5
PYTHON
