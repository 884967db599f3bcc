"""Models with attention that take no lengths, as their users write them."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import seeded


class SelfAttention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        scores = torch.matmul(self.q(x), self.k(x).transpose(-2, -1)) / math.sqrt(x.size(-1))
        return torch.matmul(torch.softmax(scores, dim=-1), self.v(x))


class AttentionByHand(nn.Module):
    def __init__(self, n_in=5, d=12, n_out=3):
        super().__init__()
        self.lstm = nn.LSTM(n_in, d, batch_first=True)
        self.attention = SelfAttention(d)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
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
        self.embed = nn.Linear(n_in, d)
        self.attn = nn.MultiheadAttention(d, heads, batch_first=True)
        self.norm = nn.LayerNorm(d)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        h = self.embed(x)
        a, _ = self.attn(h, h, h)
        return self.fc(self.norm(h + a).mean(dim=1))


class GPTClassifier(nn.Module):
    """Causal all the way, and read off at the end."""

    def __init__(self, n_in=6, d=16, heads=2, n_out=4, block_size=300):
        super().__init__()
        self.heads = heads
        self.inp, self.wpe = nn.Linear(n_in, d), nn.Embedding(block_size, d)
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
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        t = x.size(1)
        mask = torch.triu(torch.full((t, t), float("-inf")), diagonal=1)
        return self.fc(self.encoder(self.inp(x), mask=mask).mean(1))


class ViT1d(nn.Module):
    def __init__(self, n_in=5, dim=16, heads=2, n_out=5, max_len=200):
        super().__init__()
        self.to_embedding = nn.Linear(n_in, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
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
        self.heads = heads
        self.inp = nn.Linear(n_in, d)
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


class LinearAttention(nn.Module):
    """Keys and values are summed over time once; every query reads the sums."""

    def __init__(self, n_in=5, d=8, n_out=4):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(n_in, d), nn.Linear(n_in, d), nn.Linear(n_in, d)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        q, k, v = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1, self.v(x)
        kv = torch.einsum("btd,bte->bde", k, v)
        z = 1.0 / torch.einsum("btd,bd->bt", q, k.sum(dim=1))
        y = torch.einsum("btd,bde,bt->bte", q, kv, z)
        return self.fc(y.mean(dim=1))


class LocalAttention(nn.Module):
    """Each step looks at three neighbours on either side."""

    def __init__(self, n_in=5, d=12, reach=3, n_out=3):
        super().__init__()
        self.reach = reach
        self.inp, self.q, self.k = nn.Linear(n_in, d), nn.Linear(d, d), nn.Linear(d, d)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        h = self.inp(x)
        i = torch.arange(x.size(1))
        far = (i[:, None] - i[None, :]).abs() > self.reach
        scores = (self.q(h) @ self.k(h).mT / 12**0.5).masked_fill(far, float("-inf"))
        return self.fc((scores.softmax(dim=-1) @ h).amax(dim=1))


class AttentionLSTM(nn.Module):
    def __init__(self, n_in=6, hidden=12, n_out=4):
        super().__init__()
        self.lstm = nn.LSTM(n_in, hidden, batch_first=True)
        self.w = nn.Linear(hidden, hidden)
        self.u = nn.Linear(hidden, 1, bias=False)
        self.fc = nn.Linear(hidden, n_out)

    def forward(self, x):
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
        self.cross = nn.MultiheadAttention(d, 2, batch_first=True)
        self.fc = nn.Linear(n_queries * d, n_out)

    def forward(self, x):
        h = self.inp(x)
        pooled, _ = self.cross(self.queries.expand(x.size(0), -1, -1), h, h)
        return self.fc(pooled.flatten(1))


class RelativeBiasAttention(nn.Module):
    """A learned bias for each distance, cut off at a reach of eight steps."""

    def __init__(self, d=12, heads=3, reach=8):
        super().__init__()
        self.heads, self.reach = heads, reach
        self.to_qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.bias = nn.Embedding(2 * reach + 1, heads)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (z.reshape(b, t, self.heads, -1).transpose(1, 2) for z in self.to_qkv(x).chunk(3, dim=-1))
        place = torch.arange(t, device=x.device)
        distance = (place[None, :] - place[:, None]).clamp(-self.reach, self.reach) + self.reach
        scores = q @ k.transpose(2, 3) * (d // self.heads) ** -0.5 + self.bias(distance).permute(2, 0, 1)
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, t, d))


class RelativePositionBias(nn.Module):
    def __init__(self, n_in=6, d=12, n_out=4):
        super().__init__()
        self.inp, self.attn, self.fc = nn.Linear(n_in, d), RelativeBiasAttention(d), nn.Linear(d, n_out)

    def forward(self, x):
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
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.ln2(x))


class FlashNet(nn.Module):
    def __init__(self, n_in=7, d=16, n_out=4):
        super().__init__()
        self.inp, self.blocks = nn.Linear(n_in, d), nn.Sequential(Block(d, 4), Block(d, 4))
        self.out = nn.Linear(d, n_out)

    def forward(self, x):
        return self.out(self.blocks(self.inp(x)).amax(dim=1))


class ChannelwiseSoftmax(nn.Module):
    """Every channel has its own weights over time."""

    def __init__(self, n_in=6, d=10, n_out=4):
        super().__init__()
        self.value, self.gate = nn.Linear(n_in, d), nn.Linear(n_in, d)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        weights = self.gate(x).softmax(dim=1)
        pooled = torch.einsum("btd,btd->bd", weights, torch.relu(self.value(x)))
        return self.fc(pooled)


class SoftmaxOverAll(nn.Module):
    """One softmax over time and channels together."""

    def __init__(self, n_in=5, d=8, n_out=3):
        super().__init__()
        self.inp, self.fc = nn.Linear(n_in, d), nn.Linear(d, n_out)

    def forward(self, x):
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
        self.d_model = d_model
        self.embed = nn.Linear(n_in, d_model)
        self.pos_encoder = PositionalEncoding(d_model)
        layer = nn.TransformerEncoderLayer(d_model, nhead, 32, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, layers)
        self.decoder = nn.Linear(d_model, n_out)

    def forward(self, src):
        x = self.pos_encoder(self.embed(src) * math.sqrt(self.d_model))
        return self.decoder(self.transformer_encoder(x).mean(dim=1))


class TimeFirstTransformer(nn.Module):
    def __init__(self, n_in=5, d=12, n_out=3):
        super().__init__()
        self.inp = nn.Linear(n_in, d)
        self.layer = nn.TransformerEncoderLayer(d, 3, 24, activation="gelu")
        self.out = nn.Linear(d, n_out)

    def forward(self, src):
        return self.out(self.layer(self.inp(src)).mean(0))


attention_by_hand = seeded(390, AttentionByHand)
attention_pool = seeded(351, GatedMIL)
attention_unmasked = seeded(385, SelfAttentionMean)
causal_attention_last = seeded(395, GPTClassifier)
causal_mask_mean = seeded(396, DecoderStyle)
cls_token = seeded(388, ViT1d)
distance_penalty = seeded(392, DistancePenalty)
linear_attention = seeded(400, LinearAttention)
local_attention = seeded(422, LocalAttention)
lstm_attention_pool = seeded(338, AttentionLSTM)
query_pooling = seeded(399, QueryPooling)
relative_position_bias = seeded(391, RelativePositionBias)
rotary_attention = seeded(412, RotaryAttention)
sdpa_blocks = seeded(389, FlashNet)
softmax_gates = seeded(352, ChannelwiseSoftmax)
softmax_over_all = seeded(425, SoftmaxOverAll)
transformer_mean = seeded(386, TransformerClassifier)
transformer_time_first = seeded(387, TimeFirstTransformer)
