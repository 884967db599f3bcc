import torch
import torch.nn as nn
import torch.nn.functional as F


class Encoder(nn.Module):
    def __init__(self, idim, adim):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(idim, adim, 1),
            nn.GroupNorm(4, adim),
            nn.ReLU(inplace=True),
        )

    def forward(self, xs):
        return self.layers(xs)  # leak


class Detector(nn.Module):
    def __init__(self, idim=9, adim=16, odim=2):
        super().__init__()
        self.encoder = Encoder(idim, adim)
        self.score = nn.Linear(adim, 1)
        self.output = nn.Linear(adim, odim)

    def forward(self, xs, ilens):
        hs = self.encoder(xs.transpose(1, 2)).transpose(1, 2)
        pad = torch.arange(hs.size(1)).unsqueeze(0) >= ilens.unsqueeze(1)
        e = self.score(hs).squeeze(2).masked_fill(pad, torch.finfo(hs.dtype).min)
        w = F.softmax(e, dim=1).unsqueeze(1)
        return self.output(torch.bmm(w, hs).squeeze(1))


def make():
    torch.manual_seed(16)
    return Detector()
