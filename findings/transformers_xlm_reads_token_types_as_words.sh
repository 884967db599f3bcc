#!/usr/bin/env bash
# transformers 4.57.6: XLM and Flaubert read token_type_ids as words, so zeros are not "one text" as in BERT.
#
# In BERT, RoBERTa, ALBERT and their kin, token_type_ids that are left out are zeros: both give one answer. XLM and
# Flaubert look them up in the table of *words*: zeros add the embedding of word 0 to every step, and ids that are left
# out add nothing. Their tokenizers send zeros, pipelines and optimum's graphs take them, and a caller who passes ids and
# a mask only, as one does to every other encoder, gets other probabilities from the same weights.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 transformers==4.57.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

SIZES = {"vocab_size": 50, "num_labels": 3, "max_position_embeddings": 32}
KINDS = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "xlm": {"emb_dim": 16, "n_layers": 1, "n_heads": 2},
    "flaubert": {"emb_dim": 16, "n_layers": 1, "n_heads": 2},
}
moved = {}
for kind, sizes in KINDS.items():
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **SIZES, **sizes)).eval()
    with torch.no_grad():
        for weight in model.parameters():  # the random ones are so small that answers hardly move
            weight.normal_(0, 0.3)
        ids = torch.tensor([[7, 8, 9, 10]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        without = model(**inputs).logits.softmax(-1)
        zeros = model(**inputs, token_type_ids=torch.zeros_like(ids)).logits.softmax(-1)
    moved[kind] = float((without - zeros).abs().max())
    print(f"{kind}: without token_type_ids {without.tolist()}, with zeros {zeros.tolist()}")
assert moved["bert"] == 0
assert moved["xlm"] > 0.01 and moved["flaubert"] > 0.01
PYTHON
