"""Models with attention that are sound, as their users write them."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.gallery.torch_models import exhibit, network, seeded


@dataclass(frozen=True)
class AttentionConfig:
    input_dim: int = 4
    d: int = 16
    heads: int = 2
    n_classes: int = 3


class AdditiveAttention(nn.Module):
    def __init__(self, cfg: AttentionConfig) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(cfg.d, cfg.d), nn.Tanh(), nn.Linear(cfg.d, cfg.heads, bias=False))

    def forward(self, h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        penalty = (1.0 - mask.to(h.dtype)) * -1e9
        weights = torch.softmax(self.score(h) + penalty.unsqueeze(-1), dim=1)
        return torch.einsum("bth,btd->bhd", weights, h).flatten(1)


class AdditiveAttentionModel(nn.Module):
    def __init__(self, cfg: AttentionConfig | None = None) -> None:
        super().__init__()
        cfg = cfg or AttentionConfig()
        self.inp = nn.Sequential(nn.Linear(cfg.input_dim, cfg.d), nn.LayerNorm(cfg.d), nn.ReLU())
        self.attention, self.out = AdditiveAttention(cfg), nn.Linear(cfg.heads * cfg.d, cfg.n_classes)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.out(self.attention(self.inp(x), mask))


class ALiBi(nn.Module):
    def __init__(self, n_in=6, d=16, heads=4, n_out=3):
        super().__init__()
        self.h, self.dk, self.inp, self.to_qkv = heads, d // heads, nn.Linear(n_in, d), nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, n_out)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, heads + 1))

    def forward(self, x, lengths):
        b, t, _ = x.shape
        pos = torch.arange(t)
        bias = -(pos[None, :] - pos[:, None]).abs() * self.slopes[:, None, None]
        key_ok = pos[None, :] < lengths[:, None]
        q, k, v = self.to_qkv(self.inp(x)).view(b, t, 3, self.h, self.dk).permute(2, 0, 3, 1, 4)
        s = torch.einsum("bhid,bhjd->bhij", q, k) / self.dk**0.5 + bias
        s = s.masked_fill(~key_ok[:, None, None, :], float("-inf"))
        o = torch.einsum("bhij,bhjd->bhid", s.softmax(-1), v)
        o = o.permute(0, 2, 1, 3).flatten(2)
        first = o[:, 0]
        return self.out(first)


class GPTLike(nn.Module):
    """Looks back only, and is read at the last valid step: padding on the right cannot be seen from there."""

    def __init__(self, n_in=4, d=16, n_out=3, context=300):
        super().__init__()
        self.inp, self.wpe = nn.Linear(n_in, d), nn.Embedding(context, d)
        layer = nn.TransformerEncoderLayer(d, 4, 2 * d, batch_first=True, norm_first=True, activation="gelu")
        self.blocks = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(d), enable_nested_tensor=False)
        self.lm_head = nn.Linear(d, n_out, bias=False)

    def forward(self, x, lengths):
        b, t, _ = x.shape
        h = self.inp(x) + self.wpe(torch.arange(t))
        h = self.blocks(h, mask=nn.Transformer.generate_square_subsequent_mask(t), is_causal=True)
        return self.lm_head(h[torch.arange(b), lengths - 1])


class CNNLSTM(nn.Module):
    def __init__(self, n_in=9, c=12, h=10, n_out=6):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(n_in, c, kernel_size=5, padding="same"), nn.BatchNorm1d(c)
        self.lstm, self.attn = nn.LSTM(c, h, batch_first=True, bidirectional=True), nn.Linear(2 * h, 1)
        self.fc = nn.Linear(2 * h, n_out)

    def forward(self, x, lens):
        keep = torch.arange(x.shape[1]) < lens[:, None]
        x = x.masked_fill(~keep[:, :, None], 0)
        x = torch.relu(self.bn(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        packed = pack_padded_sequence(x, lens.cpu(), batch_first=True, enforce_sorted=False)
        out = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        scores = self.attn(out).squeeze(-1).masked_fill(~keep, torch.finfo(out.dtype).min)
        return self.fc((scores.softmax(1).unsqueeze(1) @ out).squeeze(1))


@exhibit(features=9)
def cnn_lstm():
    torch.manual_seed(115)
    model = CNNLSTM()
    model.bn.running_mean.normal_()
    return model


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
        self.position_embeddings, self.token_type_embeddings = nn.Embedding(positions, d), nn.Embedding(2, d)
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


@network(
    143,
    lambda: dict(rnn=nn.GRU(5, 6, batch_first=True, bidirectional=True), score=nn.Linear(12, 1), out=nn.Linear(12, 3)),
    features=5,
    second="both",
)
def lengths_and_mask(self, x, x_lengths, x_mask):
    packed = pack_padded_sequence(x, x_lengths.cpu(), batch_first=True, enforce_sorted=False)
    h, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.size(1))
    weights = self.score(h).squeeze(-1).masked_fill(~x_mask, float("-inf")).softmax(1)
    return self.out((weights.unsqueeze(-1) * h).sum(1))


class Encoder(nn.Module):
    """The mask is true at padding, as torch's own layers want it."""

    def __init__(self, n_in=6, d=12, n_out=3):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        layer = nn.TransformerEncoderLayer(d, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(d, n_out)

    def forward(self, src, src_key_padding_mask):
        h = self.encoder(self.step(src), src_key_padding_mask=src_key_padding_mask)
        kept = h.masked_fill(src_key_padding_mask.unsqueeze(-1), 0.0)
        return self.out(kept.sum(1) / (~src_key_padding_mask).sum(1, keepdim=True))


class QueryPool(nn.Module):
    """A learned query reads the sequence."""

    def __init__(self, n_in=5, d=16, heads=4, n_out=3):
        super().__init__()
        self.proj, self.query = nn.Linear(n_in, d), nn.Parameter(torch.randn(1, 2, d))
        self.mha, self.out = nn.MultiheadAttention(d, heads, batch_first=True), nn.Linear(2 * d, n_out)

    def forward(self, x, mask):
        kv = self.proj(x)
        q = self.query.repeat(x.size(0), 1, 1)
        z, _ = self.mha(q, kv, kv, key_padding_mask=torch.logical_not(mask))
        return self.out(z.reshape(x.size(0), -1))


class BiLM(nn.Module):
    """ELMo-like: the layers run apart and a learned scalar mix joins them."""

    def __init__(self, dim: int = 6, hidden: int = 8, layers: int = 3, classes: int = 4) -> None:
        super().__init__()
        sizes = [dim] + [2 * hidden] * (layers - 1)
        self.layers = nn.ModuleList(nn.LSTM(s, hidden, bidirectional=True, batch_first=True) for s in sizes)
        self.gamma, self.mix = nn.Parameter(torch.ones(())), nn.Parameter(torch.randn(layers))
        self.out = nn.Linear(2 * hidden, classes)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        state: PackedSequence = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs = []
        for layer in self.layers:
            state, _ = layer(state)
            outputs.append(pad_packed_sequence(state, batch_first=True)[0])
        weights = torch.softmax(self.mix, dim=0)
        mixed = self.gamma * sum(w * o for w, o in zip(weights, outputs, strict=True))
        return self.out(mixed.sum(dim=1) / lengths[:, None])


class CausalSelfAttention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)

    def forward(self, x, attn_mask):
        B, T, C = x.shape
        q, k, v = self.qkv(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.heads, C // self.heads).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(y.transpose(1, 2).contiguous().view(B, T, C))


class SdpaAttention(nn.Module):
    def __init__(self, n_in=6, d=16, heads=2, depth=2, n_out=5):
        super().__init__()
        self.inp, self.norms = nn.Linear(n_in, d), nn.ModuleList(nn.LayerNorm(d) for _ in range(depth))
        self.attns = nn.ModuleList(CausalSelfAttention(d, heads) for _ in range(depth))
        self.out = nn.Linear(d, n_out)

    def forward(self, x, mask):
        bias = mask[:, None, None, :]
        h = self.inp(x)
        for norm, attn in zip(self.norms, self.attns, strict=True):
            h = h + attn(norm(h), bias)
        h = (h * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        return self.out(h)


class AttentiveGRU(nn.Module):
    def __init__(self, n_in=7, hid=10, n_out=3, layers=3):
        super().__init__()
        self.rnn = nn.GRU(n_in, hid, layers, batch_first=True, bidirectional=True, dropout=0.2)
        self.w, self.u = nn.Linear(2 * hid, 2 * hid), nn.Linear(2 * hid, 1, bias=False)
        self.fc = nn.Linear(2 * hid, n_out)

    def forward(self, x, seq_len):
        T = x.size(1)
        h = pack_padded_sequence(x, seq_len.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = self.rnn(h)
        h, _ = pad_packed_sequence(h, batch_first=True, total_length=T)
        e = self.u(torch.tanh(self.w(h))).squeeze(2)
        e = e.masked_fill(torch.arange(T)[None] >= seq_len[:, None], float("-inf"))
        a = F.softmax(e, dim=1)
        return self.fc(torch.einsum("bt,bth->bh", a, h))


class SpeechEncoder(nn.Module):
    def __init__(self, n_mels=8, d=16, n_out=4):
        super().__init__()
        self.front, self.attn, self.norm = nn.Linear(n_mels, d), nn.MultiheadAttention(d, 4), nn.LayerNorm(d)
        self.out = nn.Linear(d, n_out)

    def forward(self, feats, feat_lens):
        """feats: [time, batch, mels]."""
        t = feats.size(0)
        pad = ~(torch.ones(feats.size(1), t).cumsum(dim=1) <= feat_lens.unsqueeze(1))
        x = self.front(feats)
        x = self.norm(x + self.attn(x, x, x, key_padding_mask=pad)[0])
        x = x.masked_fill(pad.t().unsqueeze(-1), 0.0)
        return self.out(x.sum(0) / feat_lens.unsqueeze(1))


class CLSTransformer(nn.Module):
    def __init__(self, n_in=6, d_model=16, n_heads=4, n_layers=2, n_classes=5, max_len=200):
        super().__init__()
        self.proj, self.cls_token = nn.Linear(n_in, d_model), nn.Parameter(torch.randn(1, 1, d_model) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, max_len + 1, d_model) * 0.02)
        layer = nn.TransformerEncoderLayer(d_model, n_heads, 2 * d_model, 0.1, "gelu", batch_first=True)
        self.encoder, self.mlp_head = nn.TransformerEncoder(layer, n_layers), nn.Linear(d_model, n_classes)

    def forward(self, x, mask):
        b = x.shape[0]
        x = torch.cat([self.cls_token.expand(b, -1, -1), self.proj(x)], dim=1)
        x = x + self.pos[:, : x.shape[1]]
        ignore = torch.cat([torch.zeros(b, 1, dtype=torch.bool), ~mask], dim=1)
        x = self.encoder(x, src_key_padding_mask=ignore)
        return self.mlp_head(x[:, 0])


class TSTransformer(nn.Module):
    """Time first inside, as the original layers want it."""

    def __init__(self, feat_dim=8, d_model=16, n_heads=2, num_layers=2, num_classes=4, max_len=1024):
        super().__init__()
        self.project_inp = nn.Linear(feat_dim, d_model)
        pe = torch.zeros(max_len, d_model)
        pos = torch.arange(0, max_len, dtype=torch.float).unsqueeze(1)
        div = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
        pe[:, 0::2] = torch.sin(pos * div)
        pe[:, 1::2] = torch.cos(pos * div)
        self.register_buffer("pe", pe.unsqueeze(1))
        layer = nn.TransformerEncoderLayer(d_model, n_heads, 32, 0.1)
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.output_layer = nn.Linear(d_model, num_classes)

    def forward(self, X, lengths):
        padding = torch.arange(X.size(1))[None, :].ge(lengths[:, None])
        inp = X.permute(1, 0, 2)
        inp = self.project_inp(inp) * math.sqrt(16)
        inp = inp + self.pe[: inp.size(0)]
        out = self.transformer_encoder(inp, src_key_padding_mask=padding).permute(1, 0, 2)
        out = nn.functional.gelu(out) * (~padding).unsqueeze(-1)
        return self.output_layer(out.sum(1) / lengths.unsqueeze(1))


class WithWeights(nn.Module):
    def __init__(self, n_in=4, d=16, n_out=3):
        super().__init__()
        self.gru, self.attn, self.fc = nn.GRU(n_in, d, batch_first=True), nn.Linear(d, 1), nn.Linear(d, n_out)

    def forward(self, x, lengths):
        h, _ = self.gru(x)
        mask = torch.arange(x.size(1)).unsqueeze(0) < lengths.unsqueeze(1)
        s = self.attn(h).squeeze(-1)
        s = torch.where(mask, s, torch.full_like(s, -torch.inf))
        w = s.softmax(dim=-1)
        return w, self.fc((w.unsqueeze(-1) * h).sum(1))


additive_attention = seeded(108, AdditiveAttentionModel, verdict="warning", features=4, second="mask")
alibi_attention = seeded(130, ALiBi, verdict="warning", features=6)
causal_decoder = seeded(133, GPTLike, verdict="warning", features=4)
hugging_face_encoder = seeded(
    147, EncoderForSequenceClassification, vocabulary=70, second="mask", arguments=("input_ids", "attention_mask")
)
padding_mask_encoder = seeded(140, Encoder, verdict="warning", features=6, second="padding-mask", named=True)
query_pooling = seeded(111, QueryPool, verdict="warning", features=5, second="mask")
scalar_mix = seeded(117, BiLM, features=6)
sdpa_attention = seeded(123, SdpaAttention, verdict="warning", features=6, second="mask")
three_layer_bigru = seeded(103, AttentiveGRU, features=7)
time_first_attention = seeded(134, SpeechEncoder, verdict="warning", features=8, time_first=True)
transformer_cls_token = seeded(109, CLSTransformer, verdict="warning", features=6, second="mask")
transformer_mean = seeded(110, TSTransformer, verdict="warning", features=8)
tuple_output = seeded(119, WithWeights, verdict="warning", features=4, output=1)
