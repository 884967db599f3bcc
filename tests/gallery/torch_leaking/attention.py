"""Models with attention that leak, as their users write them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import exhibit, network, seeded


class AttentionHead(nn.Module):
    def __init__(self, feats=6, dim=16, heads=4, out=3):
        super().__init__()
        self.embed, self.mha = nn.Linear(feats, dim), nn.MultiheadAttention(dim, heads)
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
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, n_classes)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        pad = pad_mask(lengths, x.size(1))
        h = self.inp(x)
        a, _ = self.self_attention(h, h, h, key_padding_mask=pad)  # leak
        h = self.norm(h + a) * (1 - pad).unsqueeze(-1)
        return self.fc(h.sum(1) / lengths.unsqueeze(1))


@network(
    40,
    lambda: dict(V=nn.Linear(9, 16), U=nn.Linear(9, 16), w=nn.Linear(16, 1), fc=nn.Linear(9, 2)),
    operator=("einsum", "bmm", "sum"),
    features=9,
)
def gated_sum(self, bag, lengths):
    """Ilse et al. style gate, without the softmax: every step decides for itself."""
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


@network(
    16,
    lambda: dict(encoder=Encoder(9, 16), score=nn.Linear(16, 1), output=nn.Linear(16, 2)),
    operator=("group_norm", "layers.1"),
    features=9,
)
def group_norm(self, xs, ilens):
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


@network(
    17,
    lambda: dict(inp=nn.Linear(6, 16), attn=SelfAttention(16), norm=nn.LayerNorm(16), out=nn.Linear(16, 3)),
    operator=("softmax", "matmul"),
    features=6,
    second="mask",
)
def inverted_mask(self, x, mask):
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
        self.embedding, self.pos_encoder = nn.Linear(input_dim, d_model), PositionalEncoding(d_model)
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
        self.ln1, self.attn = nn.LayerNorm(dim), nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        y = self.ln1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]  # leak
        return x + self.mlp(self.ln2(x))


@network(
    23,
    lambda: dict(proj=nn.Linear(6, 16), blocks=nn.ModuleList([Block(16, 4) for _ in range(2)]), head=nn.Linear(16, 3)),
    operator=("blocks.0.attn", "multi_head_attention", "scaled_dot"),
    features=6,
    second="mask",
)
def mha_without_mask(self, x, mask):
    x = self.proj(x)
    for blk in self.blocks:
        x = blk(x)
    m = mask.unsqueeze(-1).type_as(x)
    return self.head((x * m).sum(1) / m.sum(1))


class NBoW(nn.Module):
    def __init__(self, vocab_size=50, dim=16, max_len=256, num_labels=4):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocab_size, dim, padding_idx=0), nn.Embedding(max_len, dim)
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
        self.step, self.mix = nn.Linear(n_in, d), nn.MultiheadAttention(d, 2, batch_first=True)
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
        self.pool, self.head = AttnPool(cfg), nn.Linear(cfg.d_model, cfg.n_classes)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = self.embed(x) * mask.unsqueeze(-1)
        return self.head(self.pool(h, mask))


@exhibit(operator="softmax", features=4, second="mask")
def scores_multiplied_by_mask() -> nn.Module:
    torch.manual_seed(5)
    return ScoresMultipliedByMask(Config())


class Attention(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.proj, self.context = nn.Linear(hidden, hidden), nn.Parameter(torch.randn(hidden))

    def forward(self, h, mask):
        u = torch.tanh(self.proj(h))
        att = F.softmax(u @ self.context, dim=1)  # leak
        att = att * mask.float()
        return (h * att.unsqueeze(-1)).sum(1)


@network(
    4,
    lambda: dict(rnn=nn.GRU(7, 16, batch_first=True), attention=Attention(16), out=nn.Linear(16, 5)),
    operator="softmax",
    features=7,
    second="mask",
)
def softmax_before_mask(self, x, mask):
    """The word level of a hierarchical attention network."""
    h, _ = self.rnn(x)
    return self.out(self.attention(h, mask))


class AttnGRU(nn.Module):
    def __init__(self, n_in=6, hidden=16, n_out=2):
        super().__init__()
        self.gru, self.attn = nn.GRU(n_in, hidden, batch_first=True), nn.Linear(hidden, 1)
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
        self.key, self.value = nn.Linear(features, dim), nn.Linear(features, dim)
        self.query = nn.Parameter(torch.randn(queries, dim) / dim**0.5)
        self.fc = nn.Linear(queries * dim, classes)

    def forward(self, x, lengths):
        mask = torch.arange(x.shape[1]).lt(lengths.unsqueeze(1))
        energy = torch.einsum("qd,btd->bqt", self.query, self.key(x))
        energy = energy.masked_fill(mask.logical_not().unsqueeze(1), self.NEG)
        alpha = energy.softmax(-1)  # leak
        heads = torch.einsum("bqt,btd->bqd", alpha, self.value(x) * mask.unsqueeze(-1))
        return self.fc(heads.flatten(1))


batch_first_forgotten = seeded(42, AttentionHead, operator=("mha", "multi_head_attention"), features=6, second="mask")
float_key_padding_mask = seeded(
    43, Reader, operator=("self_attention", "multi_head_attention", "scaled_dot"), features=5
)
masked_keys_plain_mean = seeded(18, TransformerClassifier, operator="mean", features=8)
padding_idx_with_positions = seeded(29, NBoW, operator="sum", vocabulary=50, second="mask")
padding_mask_ignored_by_pool = seeded(61, Pooled, operator="max", features=6, second="padding-mask", named=True)
softmax_over_rows = seeded(36, AttnGRU, operator="softmax", features=6, second="mask")
src_mask_of_longest = seeded(
    24, EEGTransformer, operator=("self_attn", "multi_head_attention", "scaled_dot"), features=8, second="mask"
)
tiny_fill_value = seeded(37, MultiHeadPool, operator="softmax", features=5)
