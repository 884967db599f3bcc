"""Published architectures: models with attention that take no lengths, as their users write them."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import network, seeded, with_statistics


class WordAttention(nn.Module):
    def __init__(self, vocab=60, d=8, h=6, classes=5):
        super().__init__()
        self.lookup, self.gru = nn.Embedding(vocab, d), nn.GRU(d, h, bidirectional=True, batch_first=True)
        self.weight, self.context = nn.Linear(2 * h, 2 * h), nn.Parameter(torch.randn(2 * h))
        self.fc = nn.Linear(2 * h, classes)

    def forward(self, words):
        f, _ = self.gru(self.lookup(words))
        u = torch.tanh(self.weight(f))
        a = torch.matmul(u, self.context).softmax(dim=1).unsqueeze(-1)
        return self.fc(torch.sum(f * a, dim=1))


class Embeddings(nn.Module):
    def __init__(self, vocab_size, hidden, positions):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, hidden)
        self.LayerNorm, self.dropout = nn.LayerNorm(hidden, eps=1e-12), nn.Dropout(0.1)
        self.register_buffer("position_ids", torch.arange(positions).unsqueeze(0))

    def forward(self, input_ids):
        position_ids = self.position_ids[:, : input_ids.size(1)]
        e = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(e))


class Layer(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.dense, self.norm1 = nn.Linear(hidden, hidden), nn.LayerNorm(hidden, eps=1e-12)
        self.intermediate, self.output = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps=1e-12)

    def transpose_for_scores(self, x):
        return x.view(*x.size()[:-1], self.heads, self.size).permute(0, 2, 1, 3)

    def forward(self, x):
        q, k, v = (self.transpose_for_scores(f(x)) for f in (self.query, self.key, self.value))
        probabilities = nn.functional.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.size), dim=-1)
        context = (probabilities @ v).permute(0, 2, 1, 3).contiguous()
        context = context.view(*context.size()[:-2], self.heads * self.size)
        x = self.norm1(self.dense(context) + x)
        return self.norm2(self.output(nn.functional.gelu(self.intermediate(x))) + x)


class BertForClassification(nn.Module):
    def __init__(self, vocab_size=90, hidden=16, heads=4, layers=2, positions=128, num_labels=3):
        super().__init__()
        self.embeddings = Embeddings(vocab_size, hidden, positions)
        self.encoder = nn.ModuleList([Layer(hidden, heads) for _ in range(layers)])
        self.pooler, self.classifier = nn.Linear(hidden, hidden), nn.Linear(hidden, num_labels)

    def forward(self, input_ids):
        h = self.embeddings(input_ids)
        for layer in self.encoder:
            h = layer(h)
        return self.classifier(torch.tanh(self.pooler(h[:, 0])))


class Block(nn.Module):
    """A causal depthwise convolution and efficient channel attention, as in the solutions of a contest on signs."""

    def __init__(self, dim, kernel):
        super().__init__()
        self.kernel, self.expand = kernel, nn.Linear(dim, dim)
        self.depthwise, self.norm = nn.Conv1d(dim, dim, kernel, groups=dim), nn.BatchNorm1d(dim)
        self.eca, self.project = nn.Conv1d(1, 1, 5, padding=2, bias=False), nn.Linear(dim, dim)

    def forward(self, x):
        h = F.silu(self.expand(x)).transpose(1, 2)
        h = self.norm(self.depthwise(F.pad(h, (self.kernel - 1, 0)))).transpose(1, 2)
        h = h * torch.sigmoid(self.eca(h.mean(dim=1, keepdim=True)))
        return x + self.project(h)


class CausalEca(nn.Module):
    def __init__(self, n_in=6, dim=16, n_out=4):
        super().__init__()
        self.stem, self.blocks = nn.Linear(n_in, dim), nn.Sequential(Block(dim, 9), Block(dim, 9))
        self.encoder = nn.TransformerEncoderLayer(dim, 4, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(dim, n_out)

    def forward(self, x):
        h = self.encoder(self.blocks(self.stem(x)))
        return self.head(F.adaptive_avg_pool1d(h.transpose(1, 2), 1).squeeze(-1))


class FeedForward(nn.Sequential):
    def __init__(self, d):
        super().__init__(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.SiLU(), nn.Dropout(0.1), nn.Linear(2 * d, d))


class ConvolutionModule(nn.Module):
    def __init__(self, d, kernel=7):
        super().__init__()
        self.norm, self.pointwise1 = nn.LayerNorm(d), nn.Conv1d(d, 2 * d, 1)
        self.depthwise = nn.Conv1d(d, d, kernel, padding=(kernel - 1) // 2, groups=d)
        self.bn, self.pointwise2 = nn.BatchNorm1d(d), nn.Conv1d(d, d, 1)

    def forward(self, x):
        x = F.glu(self.pointwise1(self.norm(x).transpose(1, 2)), dim=1)
        x = F.silu(self.bn(self.depthwise(x)))
        return self.pointwise2(x).transpose(1, 2)


class ConformerBlock(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.ff1, self.ff2 = FeedForward(d), FeedForward(d)
        self.attn_norm, self.attn = nn.LayerNorm(d), nn.MultiheadAttention(d, heads, batch_first=True)
        self.conv, self.final = ConvolutionModule(d), nn.LayerNorm(d)

    def forward(self, x):
        x = x + 0.5 * self.ff1(x)
        y = self.attn_norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = x + self.conv(x)
        return self.final(x + 0.5 * self.ff2(x))


class Conformer(nn.Module):
    """Frames are thinned to a quarter first, as for speech."""

    def __init__(self, n_mels=8, d=16, heads=2, blocks=2, classes=5):
        super().__init__()
        self.subsample = nn.Sequential(
            nn.Conv1d(n_mels, d, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(d, d, 3, stride=2, padding=1), nn.ReLU()
        )
        self.blocks = nn.ModuleList([ConformerBlock(d, heads) for _ in range(blocks)])
        self.fc = nn.Linear(d, classes)

    def forward(self, mels):
        x = self.subsample(mels.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(dim=1))


class RelativeAttention(nn.Module):
    """A learned scalar for each distance is added to the weights after the softmax."""

    def __init__(self, emb=16, heads=4, reach=300):
        super().__init__()
        self.heads, self.reach, self.scale = heads, reach, emb**-0.5
        self.key, self.value, self.query = (nn.Linear(emb, emb, bias=False) for _ in range(3))
        self.relative, self.to_out = nn.Parameter(torch.randn(2 * reach - 1, heads) * 0.05), nn.LayerNorm(emb)

    def forward(self, x):
        b, t, e = x.shape
        k = self.key(x).reshape(b, t, self.heads, -1).permute(0, 2, 3, 1)
        v = self.value(x).reshape(b, t, self.heads, -1).transpose(1, 2)
        q = self.query(x).reshape(b, t, self.heads, -1).transpose(1, 2)
        weights = torch.softmax(torch.matmul(q, k) * self.scale, dim=-1)
        steps = torch.arange(t, device=x.device)
        distance = steps[:, None] - steps[None, :] + self.reach - 1
        weights = weights + self.relative[distance].permute(2, 0, 1).unsqueeze(0)
        return self.to_out(torch.matmul(weights, v).transpose(1, 2).reshape(b, t, e))


class ConvTran(nn.Module):
    def __init__(self, channels=3, emb=16, max_len=300, num_classes=5):
        super().__init__()
        self.temporal = nn.Sequential(
            nn.Conv2d(1, 2 * emb, kernel_size=(1, 8), padding="same"), nn.BatchNorm2d(2 * emb), nn.GELU()
        )
        self.spatial = nn.Sequential(nn.Conv2d(2 * emb, emb, kernel_size=(channels, 1)), nn.BatchNorm2d(emb), nn.GELU())
        place = torch.arange(max_len).unsqueeze(1)
        rate = torch.exp(torch.arange(0, emb, 2) * (-math.log(10000.0) / emb))
        table = torch.stack([torch.sin(place * rate), torch.cos(place * rate)], dim=2).flatten(1)
        self.register_buffer("pe", table.unsqueeze(0))
        self.attention = RelativeAttention(emb, reach=max_len)
        self.norm1, self.norm2 = nn.LayerNorm(emb), nn.LayerNorm(emb)
        self.ff = nn.Sequential(nn.Linear(emb, 32), nn.ReLU(), nn.Linear(32, emb))
        self.out = nn.Linear(emb, num_classes)

    def forward(self, x):
        h = self.spatial(self.temporal(x.unsqueeze(1))).squeeze(2).permute(0, 2, 1)
        att = self.norm1(h + self.attention(h + self.pe[:, : h.size(1)]))
        out = self.norm2(att + self.ff(att))
        return self.out(out.permute(0, 2, 1).mean(-1))


class ConvReluBN(nn.Sequential):
    def __init__(self, n_in, n_out, k=1, dilation=1):
        conv = nn.Conv1d(n_in, n_out, k, dilation=dilation, padding=dilation * (k - 1) // 2)
        super().__init__(conv, nn.ReLU(), nn.BatchNorm1d(n_out))


class Res2Conv(nn.Module):
    def __init__(self, channels, dilation, scale=4):
        super().__init__()
        self.width = channels // scale
        self.convs = nn.ModuleList([ConvReluBN(self.width, self.width, 3, dilation) for _ in range(scale - 1)])

    def forward(self, x):
        head, *groups = torch.split(x, self.width, dim=1)
        out, last = [head], 0
        for conv, group in zip(self.convs, groups, strict=True):
            last = conv(group + last)
            out.append(last)
        return torch.cat(out, dim=1)


class SEBlock(nn.Module):
    def __init__(self, channels, bottleneck=4):
        super().__init__()
        self.down, self.up = nn.Conv1d(channels, bottleneck, 1), nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x):
        s = x.mean(dim=2, keepdim=True)
        return x * torch.sigmoid(self.up(torch.relu(self.down(s))))


class SERes2Block(nn.Module):
    def __init__(self, channels, dilation):
        super().__init__()
        self.net = nn.Sequential(
            ConvReluBN(channels, channels),
            Res2Conv(channels, dilation),
            ConvReluBN(channels, channels),
            SEBlock(channels),
        )

    def forward(self, x):
        return x + self.net(x)


class AttentiveStatistics(nn.Module):
    def __init__(self, channels, hidden=8):
        super().__init__()
        self.tdnn, self.conv = ConvReluBN(channels * 3, hidden), nn.Conv1d(hidden, channels, 1)

    def forward(self, x):
        mean = x.mean(2, keepdim=True)
        std = x.var(2, keepdim=True, unbiased=False).clamp(min=1e-6).sqrt()
        context = torch.cat([x, mean.expand_as(x), std.expand_as(x)], dim=1)
        w = torch.softmax(self.conv(torch.tanh(self.tdnn(context))), dim=2)
        mu = (w * x).sum(2)
        sigma = ((w * x**2).sum(2) - mu**2).clamp(min=1e-6).sqrt()
        return torch.cat([mu, sigma], dim=1)


class EcapaTDNN(nn.Module):
    def __init__(self, n_mels=6, channels=8, speakers=5):
        super().__init__()
        self.layer1 = ConvReluBN(n_mels, channels, 5)
        self.layers = nn.ModuleList([SERes2Block(channels, d) for d in (2, 3, 4)])
        self.mfa, self.asp = ConvReluBN(3 * channels, 2 * channels), AttentiveStatistics(2 * channels)
        self.bn, self.fc = nn.BatchNorm1d(4 * channels), nn.Linear(4 * channels, speakers)

    def forward(self, x):
        x = self.layer1(x.transpose(1, 2))
        outs = []
        for layer in self.layers:
            x = layer(x)
            outs.append(x)
        return self.fc(self.bn(self.asp(self.mfa(torch.cat(outs, dim=1)))))


class InducedAttention(nn.Module):
    """A set transformer's block: a few learned points look at all steps, and all steps look at them."""

    def __init__(self, n_in=4, d=12, points=5, heads=3, n_out=4):
        super().__init__()
        self.inp, self.induced = nn.Linear(n_in, d), nn.Parameter(torch.randn(1, points, d))
        self.seed = nn.Parameter(torch.randn(1, 1, d))
        self.read, self.write, self.pool = (nn.MultiheadAttention(d, heads, batch_first=True) for _ in range(3))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        h, b = self.inp(x), x.size(0)
        points = self.read(self.induced.expand(b, -1, -1), h, h, need_weights=False)[0]
        h = h + self.write(h, points, points, need_weights=False)[0]
        return self.fc(self.pool(self.seed.expand(b, -1, -1), h, h, need_weights=False)[0][:, 0])


class MACNNBlock(nn.Module):
    """Kernels of three sizes side by side, then attention over the channels."""

    def __init__(self, n_in, n_out, reduction=4):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(n_in, n_out, k, padding="same") for k in (3, 6, 12)])
        self.bn, self.fc1 = nn.BatchNorm1d(3 * n_out), nn.Linear(3 * n_out, 3 * n_out // reduction, bias=False)
        self.fc2 = nn.Linear(3 * n_out // reduction, 3 * n_out, bias=False)

    def forward(self, x):
        out = torch.relu(self.bn(torch.cat([conv(x) for conv in self.convs], dim=1)))
        attention = torch.sigmoid(self.fc2(torch.relu(self.fc1(out.mean(2)))))
        return out * attention.reshape(attention.shape[0], attention.shape[1], 1)


class MACNN(nn.Module):
    def __init__(self, in_channels=3, channels=4, classes=4):
        super().__init__()
        self.layer1, self.layer2 = MACNNBlock(in_channels, channels), MACNNBlock(3 * channels, channels)
        self.layer3, self.pool1 = MACNNBlock(3 * channels, channels), nn.MaxPool1d(3, stride=2, padding=1)
        self.pool2, self.gap = nn.MaxPool1d(3, stride=2, padding=1), nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(3 * channels, classes)

    def forward(self, x):
        x = self.pool1(self.layer1(x.permute(0, 2, 1)))
        x = self.pool2(self.layer2(x))
        return self.fc(self.gap(self.layer3(x)).flatten(1))


class DilatedResidualLayer(nn.Module):
    def __init__(self, dilation, channels):
        super().__init__()
        self.conv_dilated = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv_1x1, self.dropout = nn.Conv1d(channels, channels, 1), nn.Dropout()

    def forward(self, x):
        return x + self.dropout(self.conv_1x1(F.relu(self.conv_dilated(x))))


class SingleStage(nn.Module):
    def __init__(self, layers, channels, dim, classes):
        super().__init__()
        self.conv_in = nn.Conv1d(dim, channels, 1)
        self.layers = nn.ModuleList([DilatedResidualLayer(2**i, channels) for i in range(layers)])
        self.conv_out = nn.Conv1d(channels, classes, 1)

    def forward(self, x):
        x = self.conv_in(x)
        for layer in self.layers:
            x = layer(x)
        return self.conv_out(x)


class MultiStageTCN(nn.Module):
    """Labels every frame; each later stage refines the probabilities of the one before."""

    def __init__(self, stages=3, layers=4, channels=8, dim=6, classes=4):
        super().__init__()
        self.stage1 = SingleStage(layers, channels, dim, classes)
        refine = SingleStage(layers, channels, classes, classes)
        self.stages = nn.ModuleList([copy.deepcopy(refine) for _ in range(stages - 1)])

    def forward(self, x):
        out = self.stage1(x)
        for stage in self.stages:
            out = stage(F.softmax(out, dim=1))
        return out


@network(
    414,
    lambda: dict(
        enc=nn.Linear(5, 8), assign=nn.Linear(8, 4), centroids=nn.Parameter(torch.randn(4, 8)), fc=nn.Linear(32, 5)
    ),
    features=5,
)
def net_vlad(self, x):
    """How far the steps lie from each of a few learned centres, added up."""
    h = torch.tanh(self.enc(x))
    soft = self.assign(h).softmax(dim=-1)
    vlad = torch.einsum("btk,btd->bkd", soft, h) - soft.sum(dim=1).unsqueeze(-1) * self.centroids
    return self.fc(F.normalize(F.normalize(vlad, dim=2).flatten(1), dim=1))


class PatchTSTClassifier(nn.Module):
    """Each variable by itself: cut into patches that overlap, encoded, averaged; then all variables together."""

    def __init__(self, n_vars=3, patch=8, stride=4, d_model=16, classes=4, max_patches=128):
        super().__init__()
        self.n_vars, self.embed = n_vars, nn.Conv1d(1, d_model, patch, stride=stride)
        self.position = nn.Parameter(torch.randn(max_patches, d_model) * 0.1)
        layer = nn.TransformerEncoderLayer(d_model, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(n_vars * d_model, classes)

    def forward(self, x):
        b = x.size(0)
        x = x.transpose(1, 2).reshape(b * self.n_vars, 1, -1)
        x = self.embed(x).transpose(1, 2)
        x = self.encoder(x + self.position[: x.size(1)])
        return self.head(x.mean(dim=1).reshape(b, -1))


class EncoderLayer(nn.Module):
    """The transformer for time series normalises over the batch, not over the features."""

    def __init__(self, d_model, n_heads, d_ff):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, n_heads, dropout=0.1, batch_first=True)
        self.ff1, self.ff2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.norm1, self.norm2, self.drop = nn.BatchNorm1d(d_model), nn.BatchNorm1d(d_model), nn.Dropout(0.1)

    def normalise(self, norm, x):
        return norm(x.permute(0, 2, 1)).permute(0, 2, 1)

    def forward(self, x):
        attended, _ = self.self_attn(x, x, x)
        x = self.normalise(self.norm1, x + self.drop(attended))
        return self.normalise(self.norm2, x + self.drop(self.ff2(F.gelu(self.ff1(x)))))


class TSTClassifier(nn.Module):
    def __init__(self, feat_dim=6, d_model=16, n_heads=4, max_len=256, n_classes=4):
        super().__init__()
        self.d_model, self.project_inp = d_model, nn.Linear(feat_dim, d_model)
        self.pos = nn.Parameter(torch.empty(max_len, d_model).uniform_(-0.1, 0.1))
        self.layers = nn.ModuleList([EncoderLayer(d_model, n_heads, 32) for _ in range(2)])
        self.output = nn.Linear(d_model, n_classes)

    def forward(self, x):
        h = self.project_inp(x) * self.d_model**0.5
        h = h + self.pos[: h.shape[1]]
        for layer in self.layers:
            h = layer(h)
        return self.output(F.gelu(h).mean(dim=1))


class TwoRnnsPooled(nn.Module):
    """An LSTM and a GRU over words, with an attention by hand, the last states, a mean and a maximum."""

    def __init__(self, vocab=50, dim=12, hidden=8, n_out=3):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(vocab, dim), nn.Dropout2d(0.3)
        self.lstm = nn.LSTM(dim, hidden, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(2 * hidden, hidden, bidirectional=True, batch_first=True)
        self.weight, self.bias = nn.Parameter(torch.randn(2 * hidden, 1) * 0.3), nn.Parameter(torch.zeros(1))
        self.out = nn.Linear(8 * hidden, n_out)

    def forward(self, tokens):
        h = self.embedding(tokens)
        h = self.dropout(h.unsqueeze(2).permute(0, 3, 2, 1)).permute(0, 3, 2, 1).squeeze(2)
        first, _ = self.lstm(h)
        second, last = self.gru(first)
        last = last.permute(1, 0, 2).reshape(tokens.size(0), -1)
        scores = torch.mm(first.contiguous().view(-1, first.size(2)), self.weight).view(-1, first.size(1))
        shares = torch.exp(torch.tanh(scores + self.bias))
        shares = shares / (shares.sum(1, keepdim=True) + 1e-10)
        attended = (first * shares.unsqueeze(-1)).sum(1)
        return self.out(torch.cat([attended, last, second.mean(1), second.max(1)[0]], 1))


class VariableSelection(nn.Module):
    """Variables weighted against each other, an LSTM, and causal attention whose last step answers."""

    def __init__(self, n_in=4, hidden=16, n_out=3):
        super().__init__()
        self.embeds = nn.ModuleList(nn.Linear(1, hidden) for _ in range(n_in))
        self.select, self.lstm = nn.Linear(hidden * n_in, n_in), nn.LSTM(hidden, hidden, batch_first=True)
        self.norm, self.attention = nn.LayerNorm(hidden), nn.MultiheadAttention(hidden, 4, batch_first=True)
        self.gate, self.head = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GLU()), nn.Linear(hidden, n_out)

    def forward(self, x):
        each = torch.stack([embed(x[..., i : i + 1]) for i, embed in enumerate(self.embeds)], 2)
        shares = torch.softmax(self.select(each.flatten(2)), -1)
        chosen = (shares.unsqueeze(-1) * each).sum(2)
        out, _ = self.lstm(chosen)
        h = self.norm(out + chosen)
        steps = x.size(1)
        later = torch.triu(torch.ones(steps, steps, dtype=torch.bool), 1)
        attended, _ = self.attention(h, h, h, attn_mask=later, need_weights=False)
        return self.head(self.gate(h + attended)[:, -1])


attention_of_words = seeded(403, WordAttention, vocabulary=60)
bert_small = seeded(397, BertForClassification, vocabulary=90, longest=128)
causal_eca = seeded(509, CausalEca, features=6)
conformer = seeded(320, Conformer, with_statistics, features=8)
conv_tran = seeded(312, ConvTran, with_statistics, features=3, channels_said=True, longest=300)
ecapa_tdnn = seeded(315, EcapaTDNN, with_statistics, features=6)
induced_attention = seeded(427, InducedAttention, features=4)
macnn = seeded(323, MACNN, with_statistics, features=3)
ms_tcn = seeded(317, MultiStageTCN, features=6, channels_said=True, per_step=True)
patch_tst = seeded(324, PatchTSTClassifier, features=3, shortest=8, longest=519)
tst_pooled = seeded(310, TSTClassifier, with_statistics, features=6, longest=256)
two_rnns_pooled = seeded(507, TwoRnnsPooled, vocabulary=50)
variable_selection = seeded(513, VariableSelection, features=4)
