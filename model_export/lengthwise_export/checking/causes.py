"""Why an operator lets padding or a neighbour into an answer, and how to mend it: the table behind a check's sentences.

The key is what the operator computes (a torch function or an ONNX operator type, in small letters) and what was changed
when its output moved. The first entry that fits is taken, so the special ones stand before the general.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from lengthwise_export.checking.trials import Change

_MASK: Final = "valid = torch.arange(width, device=lengths.device) < lengths[:, None]  # [rows, width]\n"


@dataclass(frozen=True, slots=True)
class Cause:
    """A sentence why, and code that mends it."""

    why: str
    fix: str


@dataclass(frozen=True, slots=True)
class _Entry:
    kinds: str
    changes: frozenset[Change] | None
    cause: Cause


def _when(kinds: str, changes: str, why: str, fix: str) -> _Entry:
    named: frozenset[Change] | None = frozenset(changes.split()) if changes else None  # type: ignore[arg-type]  # a table
    return _Entry(kinds, named, Cause(why, fix))


_TABLE: Final = (
    _when(
        r".*",
        "poison",
        "0 * NaN is NaN, and so are 0 * Inf and Inf - Inf: a mask that multiplies or adds stops nothing of the kind.",
        _MASK + "x = torch.where(valid[..., None], x, 0.0)  # chooses, and does not compute with what it leaves out",
    ),
    _when(
        r"sort|argsort|topk_rows",
        "order",
        "The rows were sorted and never put back: each answer is another row's.",
        "lengths, order = lengths.sort(descending=True)\n...\nlogits = logits[order.argsort()]"
        "  # or leave it to pack_padded_sequence(..., enforce_sorted=False)",
    ),
    _when(
        r"(quantized_)?(lstm|gru|rnn(_tanh|_relu)?)(_cell)?|dynamicquantizelstm|scan|loop",
        "neighbours order",
        "The recurrence runs over the rows of the batch instead of the steps (batch_first is missing or one too many), "
        "or one scale is taken for the whole batch.",
        "rnn = nn.LSTM(features, hidden, batch_first=True)  # for [rows, width, features]",
    ),
    _when(
        r"(quantized_)?(lstm|gru|rnn(_tanh|_relu)?)|dynamicquantizelstm",
        "",
        "The recurrent layer does not know the lengths: its reverse direction starts in the padding, and its last "
        "state is the one at the width, not at the last valid step.",
        "packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)\n"
        "packed, state = rnn(packed)\n"
        "y, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.size(1))  # ONNX: sequence_lens",
    ),
    _when(
        r"(quantize|dynamicquantize).*|fake_quantize.*",
        "",
        "One scale is taken for the whole batch, padding and neighbours included.",
        "Quantize with a fixed scale, or one row at a time.",
    ),
    _when(
        r"batch_?norm.*|batchnormalization",
        "",
        "Batch statistics are taken over padding and neighbours.",
        "Keep running statistics (track_running_stats=True) and call model.eval(); in training, take the statistics "
        "over the valid steps only: x[valid] is [valid steps, features].",
    ),
    _when(
        r"group_?norm.*|instance_?norm.*|groupnormalization|instancenormalization",
        "",
        "The mean and the variance are taken over all steps of a row, padding included.",
        _MASK
        + "n = lengths[:, None, None]\nmean = (x * valid[..., None]).sum(1, keepdim=True) / n  # so the variance\n"
        "# or nn.LayerNorm over the features: each step by itself",
    ),
    _when(
        r"layer_?norm.*|layernormalization|rms_?norm|normalize|(linalg_)?(vector_)?norm|lpnormalization|reducel[12]",
        "",
        "The normalisation runs along the steps, so that padding is part of the statistics.",
        "norm = nn.LayerNorm(features)  # over the last axis of [rows, width, features]: each step by itself",
    ),
    _when(
        r"(native_)?(multi_head_attention.*|scaled_dot_product_attention)|attention|multiheadattention",
        "",
        "The attention looks at padded steps: the mask is missing, is meant the other way round, or does not say it "
        "for each row.",
        _MASK + "y, _ = attention(x, x, x, key_padding_mask=~valid)  # true where a step is NOT to be looked at\n"
        "# scaled_dot_product_attention: attn_mask=valid[:, None, None, :], true where it is to be looked at",
    ),
    _when(
        r"(log_?)?soft(max|min)|logsumexp|reducelogsumexp",
        "neighbours order",
        "The softmax runs over the rows of the batch: what one row gets depends on the others.",
        "weights = scores.softmax(dim=1)  # for scores [rows, width]",
    ),
    _when(
        r"(log_?)?soft(max|min)|logsumexp|reducelogsumexp",
        "",
        "Padded steps take part in the softmax: it comes before the mask, or the mask does not take their scores far "
        "enough down (a product with 0 makes a score of 0, which is no small one).",
        _MASK + "scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)\nweights = scores.softmax(dim=1)",
    ),
    _when(
        r"conv.*|unfold|(quantized_)?conv.*",
        "",
        "A convolution at the last valid steps reaches into the padding, and what stands there is not 0: after a bias, "
        "a norm or an activation a padded 0 no longer is.",
        _MASK
        + "x = x.masked_fill(~valid[:, None, :], 0.0)  # before every convolution, for x [rows, channels, width]\n"
        "x = conv(x)",
    ),
    _when(
        r"adaptive_.*pool.*|interpolate|upsample.*|resize",
        "",
        "It divides the whole width, padding included, into equal parts.",
        "Resample each sequence before it is padded, or pool over the valid steps: "
        "(x * valid[..., None]).sum(1) / lengths[:, None]",
    ),
    _when(
        r"(global)?(max|avg|average|lp).*pool.*",
        "",
        "The last window holds a valid step together with padding.",
        _MASK + "x = x.masked_fill(~valid[:, None, :], float('-inf'))  # before a max pooling\n"
        "# an average pooling: sum over the window, and divide by the number of valid steps in it",
    ),
    _when(
        r"flip|fliplr|reversesequence|roll",
        "",
        "The order of the steps is turned within the width, so that padding comes first.",
        "t = torch.arange(width, device=x.device)\n"
        "index = torch.where(t < lengths[:, None], lengths[:, None] - 1 - t, t)  # each row within its own length\n"
        "x = x.gather(1, index[..., None].expand_as(x))",
    ),
    _when(
        r"cum(sum|prod|max|min)|logcumsumexp",
        "",
        "A cumulative sum that runs from the end, or whose total is used, starts in the padding.",
        _MASK + "x = x.masked_fill(~valid[..., None], 0.0)\ntotal = x.cumsum(1)",
    ),
    _when(
        r"(r|i|h|ir)?fft.*|(i)?stft|(i)?dft|stft",
        "",
        "A Fourier transform along the steps takes the padded row for the signal.",
        "Transform sequences one by one before they are padded, or cut fixed windows that lie inside the length.",
    ),
    _when(
        r"linspace|arange|range|shape|size|positional.*",
        "",
        "Positions are counted by the width: a step's place changes with the padding behind it.",
        "position = torch.arange(width, device=lengths.device) / lengths[:, None]  # by each row's own length",
    ),
    _when(
        r"max|amax|aminmax|min|amin|reducemax|reducemin|argmax|argmin|absmax|maximum|minimum|mean|reducemean|std|var.*|median",
        "lengths",
        "A number is taken from all rows (the longest length, the batch's mean): a neighbour changes it.",
        "x / lengths[:, None]  # each row's own length in its place",
    ),
    _when(
        r"mean|sum|max|amax|aminmax|min|amin|std|var.*|median|norm|reduce.*|nanmean|nansum|quantile",
        "neighbours order",
        "It is taken over the rows of the batch, so that one row's answer depends on the others.",
        "x.mean(dim=1)  # over a row's own steps, never over dim 0; a scale is fixed beforehand, from training data",
    ),
    _when(
        r"max|amax|reducemax|aminmax|min|amin|reducemin|argmax|argmin|topk|kthvalue|median|quantile|sort|argsort|mode",
        "",
        "Padded steps compete with the valid ones for the largest (or middle) value.",
        _MASK + "x = x.masked_fill(~valid[..., None], torch.finfo(x.dtype).min)\ntop = x.max(dim=1).values",
    ),
    _when(
        r"mean|nanmean|reducemean|average|std|var.*|std_mean|cov|corrcoef",
        "",
        "The mean over the steps counts the padding in, and divides by the width instead of the length.",
        _MASK + "mean = x.masked_fill(~valid[..., None], 0.0).sum(1) / lengths[:, None]",
    ),
    _when(
        r"(nan)?sum|count_nonzero|prod|reducesum.*|reduceprod|any|all",
        "",
        "The sum over the steps takes padding in: what stands there is not 0, or the lengths are guessed from it.",
        _MASK + "total = x.masked_fill(~valid[..., None], 0.0).sum(1)",
    ),
    _when(
        r"matmul|__r?matmul__|bmm|baddbmm|einsum|mm|addmm|mv|dot|inner|tensordot|linear|gemm",
        "",
        "The product sums over the steps, and takes padding in: a weight there is not 0, or a value is not.",
        _MASK + "weights = weights.masked_fill(~valid, 0.0)  # and values at padding finite, so that 0 * value is 0",
    ),
    _when(
        r"__getitem__|select|index_select|gather.*|take.*|narrow|slice|split.*|chunk|unbind|clamp|clip",
        "",
        "A step is taken at a fixed place of the width, or one past the length: the last step of the rectangle is "
        "padding for every row but the longest.",
        "last = y[torch.arange(len(lengths), device=y.device), lengths - 1]  # [rows, features]",
    ),
    _when(
        r"reshape|view|flatten|clone|contiguous|permute|transpose|squeeze|unflatten|t|swapaxes|movedim",
        "",
        "The axes are laid into one another: a row's values come from other rows, or the width becomes features.",
        "h = h.transpose(0, 1).flatten(1)  # [directions, rows, hidden] to [rows, directions * hidden]",
    ),
    _when(
        r".*",
        "neighbours order lengths company",
        "Its output for one row depends on the other rows of the batch.",
        "Compute it row by row: no reduction over dim 0, and no number taken from all lengths.",
    ),
    _when(
        r".*",
        "width",
        "Its output at valid steps depends on how wide the batch was padded.",
        "Compute it from the lengths instead of x.size(1).",
    ),
    _when(
        r".*",
        "",
        "It carries padding into valid steps.",
        _MASK + "x = torch.where(valid[..., None], x, 0.0)  # before it",
    ),
)


def explain(kind: str, change: Change) -> Cause:
    """Why an operator of a kind gave something else after a change, and what to write instead."""
    name = kind.lower()
    return next(
        entry.cause
        for entry in _TABLE
        if (entry.changes is None or change in entry.changes) and re.fullmatch(entry.kinds, name)
    )
