#!/usr/bin/env bash
# transformers 4.57.6: Mamba2 hides left padding by its mask in a batch of two rows, and reads it in a batch of one.
#
# A padded step is set to zero before the convolution and the recurrence only where the batch has more than one row. The
# same ids with the same mask, alone at a fixed width, get other states than beside a copy of themselves; only the copies
# agree with the ids without padding. Bamba and GraniteMoeHybrid have the same condition; Mamba (the first) hides padding
# in any batch. So a server with a fixed width answers a request by whether another one came in time.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 transformers==4.57.6
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import (
    BambaConfig,
    BambaModel,
    GraniteMoeHybridConfig,
    GraniteMoeHybridModel,
    Mamba2Config,
    Mamba2Model,
    MambaConfig,
    MambaModel,
)

heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
heads |= {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4}
states = {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4, "state_size": 8}
layers = {"layers_block_type": ["mamba", "attention"], "layer_types": ["mamba", "attention"], "num_local_experts": 0}
MODELS = (
    (MambaModel, MambaConfig, {"state_size": 8}, False),
    (Mamba2Model, Mamba2Config, states, True),
    (BambaModel, BambaConfig, {**heads, "attn_layer_indices": [1]}, True),
    (GraniteMoeHybridModel, GraniteMoeHybridConfig, {**heads, **layers}, True),
)
ids = torch.tensor([[7, 8, 9, 10]])
padded, mask = torch.tensor([[3] * 4 + [7, 8, 9, 10]]), torch.tensor([[0] * 4 + [1] * 4])
for model, config, options, reads_padding in MODELS:
    torch.manual_seed(0)
    network = model(config(vocab_size=50, hidden_size=32, num_hidden_layers=2, **options)).eval()
    with torch.no_grad():
        right = network(input_ids=ids).last_hidden_state[0, -1]
        off = []
        for rows in (1, 2):
            answer = network(input_ids=padded.repeat(rows, 1), attention_mask=mask.repeat(rows, 1))
            off.append(float((answer.last_hidden_state[0, -1] - right).abs().max()))
    print(f"{model.__name__}: the last state is off by {off[0]:.2g} in a batch of one, by {off[1]:.2g} in one of two")
    assert off[1] < 1e-5 and (off[0] > 0.01) == reads_padding
PYTHON
