import torch
import torch.nn as nn


class NBoW(nn.Module):
    def __init__(self, vocab_size=50, dim=16, max_len=256, num_labels=4):
        super().__init__()
        self.tok = nn.Embedding(vocab_size, dim, padding_idx=0)
        self.pos = nn.Embedding(max_len, dim)
        self.out = nn.Linear(dim, num_labels)

    def forward(self, input_ids, attention_mask):
        input_ids = input_ids * attention_mask  # pads are id 0, whose embedding is zero
        position_ids = torch.arange(input_ids.size(1), device=input_ids.device)
        x = self.tok(input_ids) + self.pos(position_ids)
        x = x.sum(dim=1)  # leak
        return self.out(x / attention_mask.sum(dim=1, keepdim=True))


def make():
    torch.manual_seed(29)
    return NBoW()
