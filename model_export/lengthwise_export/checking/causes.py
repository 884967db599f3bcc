"""Why an operator lets padding or a neighbour into an answer, and how to mend it: the table behind a check's sentences.

The key is what the operator computes (a torch function or an ONNX operator type, in small letters) and what was changed
when its output moved. The first entry that fits is taken, so the special ones stand before the general.

The code of the table has `$inputs` for what goes into the operator, `$layer` for the layer that it is in, `$lengths`,
`$width` and `$valid` for what the module knows of the batch: `explain` puts the module's own names there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Template
from typing import Final, Literal

from lengthwise_export.checking.trials import Change

Second = Literal["lengths", "mask", "padding-mask"]
"""What says where a sequence ends; see `model_export.calling.Role`."""

_MASK: Final = "valid = $valid  # [rows, width], true at valid steps\n"
_MODULES: Final = frozenset({"F", "functional", "nn", "self", "torch"})
"""What stands before the name of a function, and is no tensor."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a module calls what it is given.

    Attributes:
        width: The width of the batch, as code.
        second: The argument that says where a sequence ends.
        role: What that is.
    """

    width: str = "width"
    second: str = "lengths"
    role: Second = "lengths"

    @property
    def valid(self) -> str:
        """Code for a mask `[rows, width]` that is true at valid steps."""
        if self.role == "lengths":
            return f"torch.arange({self.width}, device={self.second}.device) < {self.second}[:, None]"
        return f"{self.second}.bool()" if self.role == "mask" else f"~{self.second}.bool()"


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


NEUTRAL: Final = Names()
"""Where nothing is known of a module's own."""

_TABLE: Final = (
    _when(
        r".*",
        "poison",
        "0 * NaN is NaN, and so are 0 * Inf and Inf - Inf: a mask that multiplies or adds stops nothing of the kind.",
        _MASK + "$inputs = torch.where(valid[..., None], $inputs, 0.0)"
        "  # chooses, and does not compute with what it leaves out",
    ),
    _when(
        r"sort|argsort|topk_rows",
        "order",
        "The rows were sorted and never put back: each answer is another row's.",
        "$lengths, order = $lengths.sort(descending=True)\n...\nlogits = logits[order.argsort()]"
        "  # or leave it to pack_padded_sequence(..., enforce_sorted=False)",
    ),
    _when(
        r"(quantized_)?(lstm|gru|rnn(_tanh|_relu)?)(_cell)?|dynamicquantizelstm|scan|loop",
        "neighbours order",
        "The recurrence runs over the rows of the batch instead of the steps (batch_first is missing or one too many), "
        "or one scale is taken for the whole batch.",
        "batch_first=True  # where $layer is made, for inputs [rows, width, features]",
    ),
    _when(
        r"(quantized_)?(lstm|gru|rnn(_tanh|_relu)?)|dynamicquantizelstm",
        "",
        "The recurrent layer does not know the lengths: its reverse direction starts in the padding, and its last "
        "state is the one at the width, not at the last valid step.",
        "packed = pack_padded_sequence($inputs, $lengths.cpu(), batch_first=True, enforce_sorted=False)\n"
        "packed, state = $layer(packed)\n"
        "outputs, _ = pad_packed_sequence(packed, batch_first=True, total_length=$width)  # ONNX: sequence_lens",
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
        "over the valid steps only: inputs[valid] is [valid steps, features].",
    ),
    _when(
        r"group_?norm.*|instance_?norm.*|groupnormalization|instancenormalization",
        "",
        "The mean and the variance are taken over all steps of a row, padding included.",
        _MASK + "n = $lengths[:, None, None]\n"
        "mean = ($inputs * valid[..., None]).sum(1, keepdim=True) / n  # so the variance\n"
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
        _MASK + "outputs, _ = $layer($inputs, $inputs, $inputs, key_padding_mask=~valid)"
        "  # true where a step is NOT to be looked at\n"
        "# scaled_dot_product_attention: attn_mask=valid[:, None, None, :], true where it is to be looked at",
    ),
    _when(
        r"(log_?)?soft(max|min)|logsumexp|reducelogsumexp",
        "neighbours order",
        "The softmax runs over the rows of the batch: what one row gets depends on the others.",
        "weights = $inputs.softmax(dim=1)  # for scores [rows, width]",
    ),
    _when(
        r"(log_?)?soft(max|min)|logsumexp|reducelogsumexp",
        "",
        "Padded steps take part in the softmax: it comes before the mask, or the mask does not take their scores far "
        "enough down (a product with 0 makes a score of 0, which is no small one).",
        _MASK
        + "$inputs = $inputs.masked_fill(~valid, torch.finfo($inputs.dtype).min)\nweights = $inputs.softmax(dim=1)",
    ),
    _when(
        r"conv.*|unfold|(quantized_)?conv.*",
        "",
        "A convolution at the last valid steps reaches into the padding, and what stands there is not 0: after a bias, "
        "a norm or an activation a padded 0 no longer is.",
        _MASK + "$inputs = $inputs.masked_fill(~valid[:, None, :], 0.0)"
        "  # before every convolution, for inputs [rows, channels, width]\n"
        "$inputs = $layer($inputs)",
    ),
    _when(
        r"adaptive_.*pool.*|interpolate|upsample.*|resize",
        "",
        "It divides the whole width, padding included, into equal parts.",
        _MASK + "pooled = $inputs.masked_fill(~valid[..., None], 0.0).sum(1) / $lengths[:, None]"
        "  # or resample each sequence before it is padded",
    ),
    _when(
        r"(global)?(max|avg|average|lp).*pool.*",
        "",
        "The last window holds a valid step together with padding.",
        _MASK + "$inputs = $inputs.masked_fill(~valid[:, None, :], float('-inf'))  # before a max pooling\n"
        "# an average pooling: sum over the window, and divide by the number of valid steps in it",
    ),
    _when(
        r"flip|fliplr|reversesequence|roll",
        "",
        "The order of the steps is turned within the width, so that padding comes first.",
        "t = torch.arange($width, device=$inputs.device)\n"
        "index = torch.where(t < $lengths[:, None], $lengths[:, None] - 1 - t, t)  # each row within its own length\n"
        "$inputs = $inputs.gather(1, index[..., None].expand_as($inputs))",
    ),
    _when(
        r"cum(sum|prod|max|min)|logcumsumexp",
        "",
        "A cumulative sum that runs from the end, or whose total is used, starts in the padding.",
        _MASK + "$inputs = $inputs.masked_fill(~valid[..., None], 0.0)\ntotal = $inputs.cumsum(1)",
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
        "position = torch.arange($width, device=$lengths.device) / $lengths[:, None]  # by each row's own length",
    ),
    _when(
        r"max|amax|aminmax|min|amin|reducemax|reducemin|argmax|argmin|absmax|maximum|minimum|mean|reducemean|std|var.*|median",
        "lengths",
        "A number is taken from all rows (the longest length, the batch's mean): a neighbour changes it.",
        "$lengths[:, None]  # each row's own length in its place",
    ),
    _when(
        r"mean|sum|max|amax|aminmax|min|amin|std|var.*|median|norm|reduce.*|nanmean|nansum|quantile",
        "neighbours order",
        "It is taken over the rows of the batch, so that one row's answer depends on the others.",
        "$inputs.mean(dim=1)  # over a row's own steps, never over dim 0;"
        " a scale is fixed beforehand, from training data",
    ),
    _when(
        r"max|amax|reducemax|aminmax|min|amin|reducemin|argmax|argmin|topk|kthvalue|median|quantile|sort|argsort|mode",
        "",
        "Padded steps compete with the valid ones for the largest (or middle) value.",
        _MASK + "$inputs = $inputs.masked_fill(~valid[..., None], torch.finfo($inputs.dtype).min)\n"
        "top = $inputs.max(dim=1).values",
    ),
    _when(
        r"mean|nanmean|reducemean|average|std|var.*|std_mean|cov|corrcoef",
        "",
        "The mean over the steps counts the padding in, and divides by the width instead of the length.",
        _MASK + "mean = $inputs.masked_fill(~valid[..., None], 0.0).sum(1) / $lengths[:, None]",
    ),
    _when(
        r"(nan)?sum|count_nonzero|prod|reducesum.*|reduceprod|any|all",
        "",
        "The sum over the steps takes padding in: what stands there is not 0, or the lengths are guessed from it.",
        _MASK + "total = $inputs.masked_fill(~valid[..., None], 0.0).sum(1)",
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
        "last = $inputs[torch.arange(len($lengths), device=$lengths.device), $lengths - 1]  # [rows, features]",
    ),
    _when(
        r"reshape|view|flatten|clone|contiguous|permute|transpose|squeeze|unflatten|t|swapaxes|movedim",
        "",
        "The axes are laid into one another: a row's values come from other rows, or the width becomes features.",
        "$inputs.transpose(0, 1).flatten(1)  # [directions, rows, hidden] to [rows, directions * hidden]",
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
        "Compute it from the lengths of the sequences, not from the width of the batch.",
    ),
    _when(
        r".*",
        "",
        "It carries padding into valid steps.",
        _MASK + "$inputs = torch.where(valid[..., None], $inputs, 0.0)  # before it",
    ),
)


def explain(kind: str, change: Change, names: Names = NEUTRAL, operator: str = "", source: str = "") -> Cause:
    """Why an operator of a kind gave something else after a change, and what to write instead.

    Args:
        kind: What it computes.
        change: What was changed.
        names: What the module calls what it is given.
        operator: Its name: of a layer, its path comes first.
        source: The line that calls it, where there is one.
    """
    cause = next(
        entry.cause
        for entry in _TABLE
        if (entry.changes is None or change in entry.changes) and re.fullmatch(entry.kinds, kind.lower())
    )
    return Cause(cause.why, _in_its_words(cause.fix, kind, names, operator, source))


def _in_its_words(fix: str, kind: str, names: Names, operator: str, source: str) -> str:
    """A mend in a module's own names."""
    layer = _layer(operator)
    inputs = _inputs(kind, layer, source)
    lengths, before = names.second, ""
    if names.role != "lengths":
        lengths = "lengths"
        if "$lengths" in fix:
            before = f"lengths = {names.second if names.role == 'mask' else f'({names.valid})'}.sum(1)\n"
    if inputs is None and "$inputs" in fix:
        before = f"# inputs: what goes into {layer or 'the operator'}\n{before}"
    words = {
        "lengths": lengths,
        "layer": layer or "layer",
        "inputs": inputs or "inputs",
        "width": names.width,
        "valid": names.valid,
    }
    return Template(before + fix).substitute(words)


def _layer(operator: str) -> str | None:
    """How a module calls the layer of an operator, by its path: that of `encoder.rnns.0: lstm` is `self.rnns[0]`."""
    path, colon, _ = operator.partition(": ")
    if not colon:
        return None
    *parents, own = path.split(".")
    return f"self.{parents[-1]}[{own}]" if own.isdigit() and parents else f"self.{own}"


def _inputs(kind: str, layer: str | None, source: str) -> str | None:
    """What a line calls that which goes into an operator, where it is a plain name."""
    patterns = [rf"\b(\w+)\.{re.escape(kind)}\(", rf"\b{re.escape(kind)}\((\w+)\b(?![.(\[])"]
    if layer is not None:
        patterns.append(rf"{re.escape(layer)}\((\w+)\b(?![.(\[])")
    if kind == "__getitem__":
        patterns.append(r"\b(\w+)\[")
    found = (match[1] for pattern in patterns for match in re.finditer(pattern, source))
    return next((name for name in found if name not in _MODULES and not name.isdigit()), None)
