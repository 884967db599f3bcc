#!/usr/bin/env bash
# perceiver-pytorch 0.11.0 and nystrom-attention 0.0.14: a mask hides padding, and its width still moves the answer.
#
# A Perceiver places step i of a sequence at -1 + 2 i / (width - 1): positions depend on how wide the batch is padded, and
# the same recording with a mask gets other answers beside a longer one. (Without Fourier positions it does not.) The
# Nystrom attention averages groups of steps to landmarks; how many steps make a group follows from the padded width.
# What stands in the padding never matters, so a test that changes only the values of padding finds neither.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 perceiver-pytorch==0.11.0 nystrom-attention==0.0.14
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from nystrom_attention import NystromAttention
from perceiver_pytorch import Perceiver

torch.manual_seed(0)
steps = torch.randn(1, 5, 32)
mask = torch.tensor([[True] * 5 + [False] * 4])
zeros = torch.cat([steps, torch.zeros(1, 4, 32)], 1)
others = torch.cat([steps, torch.randn(1, 4, 32) * 50], 1)


def perceiver(fourier):
    return Perceiver(input_channels=32, input_axis=1, num_freq_bands=4, max_freq=8.0, depth=1, num_latents=8,
                     latent_dim=16, num_classes=4, fourier_encode_data=fourier)  # fmt: skip


def moved(model, whole):
    """How far the padded width, and then the values in the padding, move the answer."""
    model.eval()
    with torch.no_grad():
        alone, wide, other = (model(x, mask=mask[:, : x.shape[1]]) for x in (steps, zeros, others))
    if not whole:
        wide, other = wide[:, :5], other[:, :5]
    return float((wide - alone).abs().max()), float((other - wide).abs().max())


seen = {
    "perceiver": moved(perceiver(True), True),
    "without positions": moved(perceiver(False), True),
    "nystrom": moved(NystromAttention(dim=32, dim_head=8, heads=4, num_landmarks=4), False),
}
print("moved by width, by values:", seen)
assert seen["perceiver"][0] > 0.01 and seen["nystrom"][0] > 0.01 and seen["without positions"][0] < 1e-5
assert max(by_values for _, by_values in seen.values()) < 1e-5
PYTHON
