"""Models with attention that take no lengths, as their users write them."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import network, seeded


class SelfAttention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        scores = torch.matmul(self.q(x), self.k(x).transpose(-2, -1)) / math.sqrt(x.size(-1))
        return torch.matmul(torch.softmax(scores, dim=-1), self.v(x))


@network(
    390,
    lambda: dict(lstm=nn.LSTM(5, 12, batch_first=True), attention=SelfAttention(12), fc=nn.Linear(12, 3)),
    features=5,
)
def attention_by_hand(self, x):
    h, _ = self.lstm(x)
    return self.fc(self.attention(h)[:, -1])


class GatedMIL(nn.Module):
    """Gated attention over instances, by hand."""

    def __init__(self, n_in=7, d=12, att=8, n_out=3):
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(n_in, d), nn.ReLU())
        self.V, self.U, self.w = nn.Linear(d, att), nn.Linear(d, att), nn.Linear(att, 1)
        self.classifier = nn.Linear(d, n_out)

    def forward(self, x):
        H = self.feature(x)
        A = self.w(torch.tanh(self.V(H)) * torch.sigmoid(self.U(H)))
        A = torch.softmax(A.transpose(1, 2), dim=-1)
        M = torch.bmm(A, H).squeeze(1)
        return self.classifier(M)


class SelfAttentionMean(nn.Module):
    def __init__(self, n_in=6, d=16, heads=4, n_out=4):
        super().__init__()
        self.embed, self.attn = nn.Linear(n_in, d), nn.MultiheadAttention(d, heads, batch_first=True)
        self.norm, self.fc = nn.LayerNorm(d), nn.Linear(d, n_out)

    def forward(self, x):
        h = self.embed(x)
        a, _ = self.attn(h, h, h)
        return self.fc(self.norm(h + a).mean(dim=1))


class GPTClassifier(nn.Module):
    """Causal all the way, and read off at the end."""

    def __init__(self, n_in=6, d=16, heads=2, n_out=4, block_size=300):
        super().__init__()
        self.heads, self.inp, self.wpe = heads, nn.Linear(n_in, d), nn.Embedding(block_size, d)
        self.ln, self.c_attn, self.c_proj = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.head = nn.Linear(d, n_out)

    def forward(self, x):
        b, t, _ = x.size()
        h = self.inp(x) + self.wpe(torch.arange(0, t, dtype=torch.long))
        q, k, v = self.c_attn(self.ln(h)).split(16, dim=2)
        q, k, v = (z.view(b, t, self.heads, 16 // self.heads).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.c_proj(y.transpose(1, 2).contiguous().view(b, t, 16))
        return self.head(h[:, -1, :])


class DecoderStyle(nn.Module):
    def __init__(self, n_in=4, d=16, n_out=3):
        super().__init__()
        self.inp = nn.Linear(n_in, d)
        layer = nn.TransformerEncoderLayer(d, 4, 32, batch_first=True)
        self.encoder, self.fc = nn.TransformerEncoder(layer, 1), nn.Linear(d, n_out)

    def forward(self, x):
        t = x.size(1)
        mask = torch.triu(torch.full((t, t), float("-inf")), diagonal=1)
        return self.fc(self.encoder(self.inp(x), mask=mask).mean(1))


class ViT1d(nn.Module):
    def __init__(self, n_in=5, dim=16, heads=2, n_out=5, max_len=200):
        super().__init__()
        self.to_embedding, self.cls_token = nn.Linear(n_in, dim), nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, max_len + 1, dim) * 0.3)
        layer = nn.TransformerEncoderLayer(dim, heads, 32, 0.1, "gelu", batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, n_out))

    def forward(self, x):
        x = self.to_embedding(x)
        b, n, _ = x.shape
        x = torch.cat((self.cls_token.repeat(b, 1, 1), x), dim=1)
        x = x + self.pos_embedding[:, : n + 1]
        return self.mlp_head(self.transformer(x)[:, 0])


class DistancePenalty(nn.Module):
    """The farther away a step lies, the less it is heard; a slope for each head."""

    def __init__(self, n_in=5, d=16, heads=4, n_out=3):
        super().__init__()
        self.heads, self.inp = heads, nn.Linear(n_in, d)
        self.q, self.k, self.v = (nn.Linear(d, d) for _ in range(3))
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, heads + 1).float())
        self.fc = nn.Linear(d, n_out)

    def split(self, z):
        return z.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x):
        h = self.inp(x)
        steps = torch.arange(h.shape[1])
        far = (steps[:, None] - steps[None, :]).abs()
        scores = self.split(self.q(h)) @ self.split(self.k(h)).mT / 2.0 - self.slopes[:, None, None] * far
        mixed = (torch.softmax(scores, -1) @ self.split(self.v(h))).transpose(1, 2).flatten(2)
        return self.fc(mixed.max(1).values)


@network(400, lambda: dict(q=nn.Linear(5, 8), k=nn.Linear(5, 8), v=nn.Linear(5, 8), fc=nn.Linear(8, 4)), features=5)
def linear_attention(self, x):
    """Keys and values are summed over time once; every query reads the sums."""
    q, k, v = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1, self.v(x)
    kv = torch.einsum("btd,bte->bde", k, v)
    z = 1.0 / torch.einsum("btd,bd->bt", q, k.sum(dim=1))
    y = torch.einsum("btd,bde,bt->bte", q, kv, z)
    return self.fc(y.mean(dim=1))


@network(
    422, lambda: dict(inp=nn.Linear(5, 12), q=nn.Linear(12, 12), k=nn.Linear(12, 12), fc=nn.Linear(12, 3)), features=5
)
def local_attention(self, x):
    """Each step looks at three neighbours on either side."""
    h = self.inp(x)
    i = torch.arange(x.size(1))
    far = (i[:, None] - i[None, :]).abs() > 3
    scores = (self.q(h) @ self.k(h).mT / 12**0.5).masked_fill(far, float("-inf"))
    return self.fc((scores.softmax(dim=-1) @ h).amax(dim=1))


@network(
    338,
    lambda: dict(
        lstm=nn.LSTM(6, 12, batch_first=True), w=nn.Linear(12, 12), u=nn.Linear(12, 1, bias=False), fc=nn.Linear(12, 4)
    ),
    features=6,
)
def lstm_attention_pool(self, x):
    h, _ = self.lstm(x)
    score = self.u(torch.tanh(self.w(h)))
    alpha = F.softmax(score, dim=1)
    context = (alpha * h).sum(1)
    return self.fc(context)


class QueryPooling(nn.Module):
    """Four learned queries look at all steps."""

    def __init__(self, n_in=6, d=12, n_queries=4, n_out=3):
        super().__init__()
        self.inp = nn.Sequential(nn.Linear(n_in, d), nn.ReLU())
        self.queries = nn.Parameter(torch.randn(1, n_queries, d))
        self.cross, self.fc = nn.MultiheadAttention(d, 2, batch_first=True), nn.Linear(n_queries * d, n_out)

    def forward(self, x):
        h = self.inp(x)
        pooled, _ = self.cross(self.queries.expand(x.size(0), -1, -1), h, h)
        return self.fc(pooled.flatten(1))


class RelativeBiasAttention(nn.Module):
    """A learned bias for each distance, cut off at a reach of eight steps."""

    def __init__(self, d=12, heads=3, reach=8):
        super().__init__()
        self.heads, self.reach, self.to_qkv, self.out = heads, reach, nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.bias = nn.Embedding(2 * reach + 1, heads)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (z.reshape(b, t, self.heads, -1).transpose(1, 2) for z in self.to_qkv(x).chunk(3, dim=-1))
        place = torch.arange(t, device=x.device)
        distance = (place[None, :] - place[:, None]).clamp(-self.reach, self.reach) + self.reach
        scores = q @ k.transpose(2, 3) * (d // self.heads) ** -0.5 + self.bias(distance).permute(2, 0, 1)
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, t, d))


@network(391, lambda: dict(inp=nn.Linear(6, 12), attn=RelativeBiasAttention(12), fc=nn.Linear(12, 4)), features=6)
def relative_position_bias(self, x):
    h = self.inp(x)
    return self.fc((h + self.attn(h)).mean(1))


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class RotaryAttention(nn.Module):
    def __init__(self, n_in=5, d=16, heads=2, n_out=3):
        super().__init__()
        self.heads = heads
        self.inp, self.qkv, self.fc = nn.Linear(n_in, d), nn.Linear(d, 3 * d), nn.Linear(d, n_out)
        half = d // heads // 2
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(half) / half))

    def forward(self, x):
        b, t, _ = x.shape
        angles = torch.arange(t).float()[:, None] * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        q, k, v = self.qkv(self.inp(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.fc(y.transpose(1, 2).flatten(2).mean(1))


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads, self.ln1, self.ln2 = heads, nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.ln2(x))


@network(
    389,
    lambda: dict(inp=nn.Linear(7, 16), blocks=nn.Sequential(Block(16, 4), Block(16, 4)), out=nn.Linear(16, 4)),
    features=7,
)
def sdpa_blocks(self, x):
    return self.out(self.blocks(self.inp(x)).amax(dim=1))


@network(352, lambda: dict(value=nn.Linear(6, 10), gate=nn.Linear(6, 10), fc=nn.Linear(10, 4)), features=6)
def softmax_gates(self, x):
    """Every channel has its own weights over time."""
    weights = self.gate(x).softmax(dim=1)
    pooled = torch.einsum("btd,btd->bd", weights, torch.relu(self.value(x)))
    return self.fc(pooled)


@network(425, lambda: dict(inp=nn.Linear(5, 8), fc=nn.Linear(8, 3)), features=5)
def softmax_over_all(self, x):
    """One softmax over time and channels together."""
    h = self.inp(x)
    w = h.flatten(1).softmax(dim=-1).view_as(h)
    return self.fc((w * h).sum(1))


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, dropout=0.1, max_len=500):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(1, max_len, d_model)
        pe[0, :, 0::2] = torch.sin(position * div_term)
        pe[0, :, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x):
        return self.dropout(x + self.pe[:, : x.size(1)])


class TransformerClassifier(nn.Module):
    def __init__(self, n_in=6, d_model=16, nhead=4, layers=2, n_out=4):
        super().__init__()
        self.d_model, self.embed = d_model, nn.Linear(n_in, d_model)
        self.pos_encoder = PositionalEncoding(d_model)
        layer = nn.TransformerEncoderLayer(d_model, nhead, 32, batch_first=True)
        self.transformer_encoder, self.decoder = nn.TransformerEncoder(layer, layers), nn.Linear(d_model, n_out)

    def forward(self, src):
        x = self.pos_encoder(self.embed(src) * math.sqrt(self.d_model))
        return self.decoder(self.transformer_encoder(x).mean(dim=1))


class TimeFirstTransformer(nn.Module):
    def __init__(self, n_in=5, d=12, n_out=3):
        super().__init__()
        self.inp, self.layer = nn.Linear(n_in, d), nn.TransformerEncoderLayer(d, 3, 24, activation="gelu")
        self.out = nn.Linear(d, n_out)

    def forward(self, src):
        return self.out(self.layer(self.inp(src)).mean(0))


attention_pool = seeded(351, GatedMIL, features=7)
attention_unmasked = seeded(385, SelfAttentionMean, features=6)
causal_attention_last = seeded(395, GPTClassifier, features=6, longest=300)
causal_mask_mean = seeded(396, DecoderStyle, features=4)
cls_token = seeded(388, ViT1d, features=5, longest=200)
distance_penalty = seeded(392, DistancePenalty, features=5)
query_pooling = seeded(399, QueryPooling, features=6)
rotary_attention = seeded(412, RotaryAttention, features=5)
transformer_mean = seeded(386, TransformerClassifier, features=6, longest=500)
transformer_time_first = seeded(387, TimeFirstTransformer, features=5, time_first=True)
