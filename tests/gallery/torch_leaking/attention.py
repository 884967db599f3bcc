"""Models with attention that leak, as their users write them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import seeded


class AttentionHead(nn.Module):
    def __init__(self, feats=6, dim=16, heads=4, out=3):
        super().__init__()
        self.embed = nn.Linear(feats, dim)
        self.mha = nn.MultiheadAttention(dim, heads)
        self.out = nn.Linear(dim, out)

    def forward(self, x, mask):
        h = self.embed(x)
        h, _ = self.mha(h, h, h)  # leak
        h = h.masked_fill(~mask.unsqueeze(-1), 0)
        return self.out(h.sum(dim=1) / mask.sum(dim=1, keepdim=True))


def pad_mask(lengths, width):
    """1.0 where there is padding."""
    return (torch.arange(width, device=lengths.device)[None] >= lengths[:, None]).float()


class Reader(nn.Module):
    def __init__(self, in_dim: int = 5, dim: int = 16, n_classes: int = 4) -> None:
        super().__init__()
        self.inp = nn.Linear(in_dim, dim)
        self.self_attention = nn.MultiheadAttention(dim, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, n_classes)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        pad = pad_mask(lengths, x.size(1))
        h = self.inp(x)
        a, _ = self.self_attention(h, h, h, key_padding_mask=pad)  # leak
        h = self.norm(h + a) * (1 - pad).unsqueeze(-1)
        return self.fc(h.sum(1) / lengths.unsqueeze(1))


class GatedAttention(nn.Module):
    """Ilse et al. style gate, without the softmax: every step decides for itself."""

    def __init__(self, n_in=9, d=16, classes=2):
        super().__init__()
        self.V = nn.Linear(n_in, d)
        self.U = nn.Linear(n_in, d)
        self.w = nn.Linear(d, 1)
        self.fc = nn.Linear(n_in, classes)

    def forward(self, bag, lengths):
        gate = torch.sigmoid(self.w(torch.tanh(self.V(bag)) * torch.sigmoid(self.U(bag)))).squeeze(-1)
        pooled = torch.einsum("bt,btf->bf", gate, bag)  # leak
        return self.fc(pooled / lengths[:, None])


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


class SelfAttention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, d) for _ in range(3))
        self.scale = 1 / math.sqrt(d)

    def forward(self, x, mask=None):
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = torch.matmul(q, k.transpose(-2, -1)) * self.scale
        if mask is not None:
            scores = scores.masked_fill(mask.unsqueeze(1), -1e9)
        return torch.matmul(torch.softmax(scores, dim=-1), v)  # leak


class TinyTransformer(nn.Module):
    def __init__(self, features=6, d=16, classes=3):
        super().__init__()
        self.inp = nn.Linear(features, d)
        self.attn = SelfAttention(d)
        self.norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, classes)

    def forward(self, x, mask):
        x = self.inp(x)
        x = self.norm(x + self.attn(x, mask))
        x = x * mask.unsqueeze(-1)
        return self.out(x.sum(1) / mask.sum(1, keepdim=True))


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, max_len=512):
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, d_model)
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x):
        return x + self.pe[: x.size(1)]


class TransformerClassifier(nn.Module):
    def __init__(self, input_dim=8, d_model=16, nhead=2, num_layers=2, num_classes=5):
        super().__init__()
        self.embedding = nn.Linear(input_dim, d_model)
        self.pos_encoder = PositionalEncoding(d_model)
        layer = nn.TransformerEncoderLayer(d_model, nhead, dim_feedforward=32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.classifier = nn.Linear(d_model, num_classes)

    def forward(self, src, lengths):
        key_padding_mask = torch.arange(src.size(1)).unsqueeze(0) >= lengths.unsqueeze(1)
        h = self.pos_encoder(self.embedding(src))
        h = self.encoder(h, src_key_padding_mask=key_padding_mask)
        h = torch.mean(h, dim=1)  # leak
        return self.classifier(h)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.ln1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        y = self.ln1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]  # leak
        return x + self.mlp(self.ln2(x))


class MhaWithoutMask(nn.Module):
    def __init__(self, in_dim=6, dim=16, depth=2, heads=4, num_classes=3):
        super().__init__()
        self.proj = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x, mask):
        x = self.proj(x)
        for blk in self.blocks:
            x = blk(x)
        m = mask.unsqueeze(-1).type_as(x)
        return self.head((x * m).sum(1) / m.sum(1))


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


class Pooled(nn.Module):
    def __init__(self, n_in=6, d=10, n_out=2):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.mix = nn.MultiheadAttention(d, 2, batch_first=True)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, key_padding_mask):
        h = torch.tanh(self.step(x))
        h, _ = self.mix(h, h, h, key_padding_mask=key_padding_mask)
        return self.out(h.amax(dim=1))  # leak


@dataclass
class Config:
    n_features: int = 4
    d_model: int = 16
    n_classes: int = 2
    dropout: float = 0.1


class AttnPool(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(cfg.d_model, cfg.d_model), nn.Tanh(), nn.Linear(cfg.d_model, 1))

    def forward(self, h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = self.score(h).squeeze(-1)
        logits = logits * mask
        weights = logits.softmax(dim=-1)  # leak
        return torch.einsum("bt,btd->bd", weights, h)


class ScoresMultipliedByMask(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(cfg.n_features, cfg.d_model), nn.GELU(), nn.Dropout(cfg.dropout))
        self.pool = AttnPool(cfg)
        self.head = nn.Linear(cfg.d_model, cfg.n_classes)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = self.embed(x) * mask.unsqueeze(-1)
        return self.head(self.pool(h, mask))


def scores_multiplied_by_mask() -> nn.Module:
    torch.manual_seed(5)
    return ScoresMultipliedByMask(Config())


class Attention(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.proj = nn.Linear(hidden, hidden)
        self.context = nn.Parameter(torch.randn(hidden))

    def forward(self, h, mask):
        u = torch.tanh(self.proj(h))
        att = F.softmax(u @ self.context, dim=1)  # leak
        att = att * mask.float()
        return (h * att.unsqueeze(-1)).sum(1)


class HAN(nn.Module):
    """The word level of a hierarchical attention network."""

    def __init__(self, features=7, hidden=16, classes=5):
        super().__init__()
        self.rnn = nn.GRU(features, hidden, batch_first=True)
        self.attention = Attention(hidden)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x, mask):
        h, _ = self.rnn(x)
        return self.out(self.attention(h, mask))


class AttnGRU(nn.Module):
    def __init__(self, n_in=6, hidden=16, n_out=2):
        super().__init__()
        self.gru = nn.GRU(n_in, hidden, batch_first=True)
        self.attn = nn.Linear(hidden, 1)
        self.fc = nn.Linear(hidden, n_out)

    def forward(self, x, mask):
        h, _ = self.gru(x)
        a = self.attn(h)
        a[~mask] = -1e4
        a = torch.softmax(a, 0)  # leak
        ctx = torch.bmm(a.transpose(1, 2), h.masked_fill(~mask.unsqueeze(-1), 0.0)).squeeze(1)
        return self.fc(ctx)


class EEGTransformer(nn.Module):
    def __init__(self, n_channels=8, d_model=16, n_classes=2):
        super().__init__()
        self.inp = nn.Linear(n_channels, d_model)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d_model, 4, 32, dropout=0.1, batch_first=True, norm_first=True),
            num_layers=1,
            enable_nested_tensor=False,
        )
        self.out = nn.Linear(d_model, n_classes)

    def forward(self, x, mask):
        t = x.size(1)
        # nobody attends to what lies behind the longest recording
        src_mask = ~mask.any(dim=0).expand(t, t)
        h = self.encoder(self.inp(x), mask=src_mask)  # leak
        idx = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, h.size(-1))
        return self.out(h.gather(1, idx)[:, 0])


class MultiHeadPool(nn.Module):
    """Several learned queries look at the whole sequence."""

    NEG = 1e-9

    def __init__(self, features=5, dim=12, queries=3, classes=4):
        super().__init__()
        self.key = nn.Linear(features, dim)
        self.value = nn.Linear(features, dim)
        self.query = nn.Parameter(torch.randn(queries, dim) / dim**0.5)
        self.fc = nn.Linear(queries * dim, classes)

    def forward(self, x, lengths):
        mask = torch.arange(x.shape[1]).lt(lengths.unsqueeze(1))
        energy = torch.einsum("qd,btd->bqt", self.query, self.key(x))
        energy = energy.masked_fill(mask.logical_not().unsqueeze(1), self.NEG)
        alpha = energy.softmax(-1)  # leak
        heads = torch.einsum("bqt,btd->bqd", alpha, self.value(x) * mask.unsqueeze(-1))
        return self.fc(heads.flatten(1))


batch_first_forgotten = seeded(42, AttentionHead)
float_key_padding_mask = seeded(43, Reader)
gated_sum = seeded(40, GatedAttention)
group_norm = seeded(16, Detector)
inverted_mask = seeded(17, TinyTransformer)
masked_keys_plain_mean = seeded(18, TransformerClassifier)
mha_without_mask = seeded(23, MhaWithoutMask)
padding_idx_with_positions = seeded(29, NBoW)
padding_mask_ignored_by_pool = seeded(61, Pooled)
softmax_before_mask = seeded(4, HAN)
softmax_over_rows = seeded(36, AttnGRU)
src_mask_of_longest = seeded(24, EEGTransformer)
tiny_fill_value = seeded(37, MultiHeadPool)
