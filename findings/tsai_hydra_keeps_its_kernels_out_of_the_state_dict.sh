#!/usr/bin/env bash
# tsai 1.0.1: the kernels of HydraPlus are in no state_dict, so a model saved as one is another when it is loaded.
#
# Hydra convolves a series with random kernels and trains a head on what they find. One would expect `state_dict` to have
# both, or `load_state_dict` to miss something. The kernels are plain tensors in lists: the file has the head only, loading
# it into a new HydraPlus says that all keys match, and the head then reads the features of other kernels. No error, the
# right shapes, probabilities that add up to one. Of those who save a state_dict, only who makes the new model with the seed of
# the old one gets it back. (`zero_init=False`: else a head that was not trained answers the same for every series.)
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 tsai==1.0.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from tsai.models.HydraPlus import HydraPlus


def made(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return HydraPlus(3, 4, 40, k=4, g=8, zero_init=False, device="cpu").eval()


def apart(first: torch.nn.Module, second: torch.nn.Module) -> float:
    with torch.no_grad():
        return float((first(series).softmax(1) - second(series).softmax(1)).abs().max())


saved = made(0)
series = torch.randn(16, 3, 40, generator=torch.Generator().manual_seed(5))
print("state_dict:", ", ".join(saved.state_dict()))
loaded, same_seed = made(1), made(0)
print("loaded into a model of another seed:", loaded.load_state_dict(saved.state_dict()))
same_seed.load_state_dict(saved.state_dict())
print(f"its probabilities are off by up to {apart(saved, loaded):.2f}, with the same seed by {apart(saved, same_seed):.2g}")
assert not any("backbone" in name for name in saved.state_dict())
assert apart(saved, loaded) > 0.1
assert apart(saved, same_seed) == 0
PYTHON
