#!/usr/bin/env bash
# transformers 4.57.6: ConvBERT, YOSO and CANINE take an attention mask, and read the tokens that it marks as padding.
#
# One would expect that what `attention_mask` calls padding has no say, as in BERT. ConvBERT weighs neighbours in a
# convolution that knows no mask, and CANINE convolves characters into fewer positions. YOSO makes a factor of the mask,
# 1 + fill / 10000, which was 0 for padding while the fill was -10000; it is the lowest float32 today, so padded keys are
# multiplied by the lowest int32. In all three the states of valid steps move with the ids behind them; nothing warns.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 transformers==4.57.6
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import (
    BertConfig,
    BertModel,
    CanineConfig,
    CanineModel,
    ConvBertConfig,
    ConvBertModel,
    SqueezeBertConfig,
    SqueezeBertModel,
    YosoConfig,
    YosoModel,
)

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = {"vocab_size": 60, "embedding_size": 32}
MODELS = (  # model, its configuration, and by how much at least the states of valid steps move
    (BertModel, BertConfig, WORDS, 0.0),
    (SqueezeBertModel, SqueezeBertConfig, WORDS, 0.0),
    (ConvBertModel, ConvBertConfig, WORDS, 1e-3),
    (YosoModel, YosoConfig, WORDS, 1e-3),
    (CanineModel, CanineConfig, {}, 1e-3),
)
STEPS = 16
ids = torch.randint(5, 60, (1, STEPS), generator=torch.Generator().manual_seed(0))
mask = torch.tensor([[1] * STEPS + [0] * STEPS])
for model, config, options, least in MODELS:
    torch.manual_seed(0)
    network = model(config(**SIZES, **options)).eval()
    states = []
    for padding in (0, 7):
        with torch.no_grad():
            padded = torch.cat([ids, torch.full((1, STEPS), padding)], dim=1)
            states.append(network(padded, attention_mask=mask).last_hidden_state[0, :STEPS])
    moved = float((states[0] - states[1]).abs().max())
    print(f"{model.__name__}: states of valid steps move by {moved:.2g} with the ids behind them")
    assert moved > least if least else moved == 0
PYTHON
