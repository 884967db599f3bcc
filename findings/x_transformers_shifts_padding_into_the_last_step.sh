#!/usr/bin/env bash
# x-transformers 2.31.10: with `shift_tokens` the last valid step reads its padded neighbour, whatever the mask says.
#
# `Encoder(..., shift_tokens=1)` moves some features of the next step to each step before attention and before each
# feed-forward. Before attention it hides padded steps by the mask; the feed-forward is called without one, so there the
# first padded step enters the last valid one, and through the next layer's attention all of them. A dozen other options
# of the same encoder (rotary, ALiBi, memories, sparse attention) keep to the mask.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 x-transformers==2.31.10
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import torch
from x_transformers import Encoder

steps = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
mask = torch.tensor([[True] * 5 + [False] * 4])
padded = torch.cat([steps, torch.zeros(1, 4, 32)], 1)
moved = {}
for options in ({}, {"shift_tokens": 1}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}):
    torch.manual_seed(0)
    encoder = Encoder(dim=32, depth=2, heads=4, attn_dim_head=8, **options).eval()
    with torch.no_grad():
        moved[str(options)] = float((encoder(padded, mask=mask)[:, :5] - encoder(steps, mask=mask[:, :5])).abs().max())
print("padding of zeros moves valid steps by", moved)
assert moved.pop("{'shift_tokens': 1}") > 0.01 and max(moved.values()) < 1e-5
PYTHON
