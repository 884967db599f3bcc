from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn


@dataclass
class ClassifierOutput:
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple | None = None


class EncoderForSequenceClassification(nn.Module):
    """Called and built as Hugging Face's are: several tables, several arguments, an output with names."""

    def __init__(self, vocab_size=70, d=12, positions=1024, n_out=3):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.word_embeddings = nn.Embedding(vocab_size, d, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, d)
        self.token_type_embeddings = nn.Embedding(2, d)
        self.norm = nn.LayerNorm(d)
        self.query, self.key, self.value = (nn.Linear(d, d) for _ in range(3))
        self.classifier = nn.Linear(d, n_out)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        inputs_embeds=None,
        labels=None,
        return_dict=None,
    ):
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        places = torch.arange(inputs_embeds.size(1))
        kinds = torch.zeros_like(attention_mask, dtype=torch.long) if token_type_ids is None else token_type_ids
        h = inputs_embeds + self.position_embeddings(places) + self.token_type_embeddings(kinds)
        h = self.norm(h)
        extended = (1.0 - attention_mask[:, None, :].to(h.dtype)) * torch.finfo(h.dtype).min
        scores = self.query(h) @ self.key(h).transpose(1, 2) / 12**0.5 + extended
        pooled = (scores.softmax(-1) @ self.value(h))[:, 0]
        return ClassifierOutput(logits=self.classifier(torch.tanh(pooled)))


def make():
    torch.manual_seed(147)
    return EncoderForSequenceClassification()
