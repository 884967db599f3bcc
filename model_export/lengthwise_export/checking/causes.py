"""The table of causes and fixes: why an operator leaks, and code that fixes it.

The key is the operator (a torch function or an ONNX operator type, in lower case), and for some entries the change that
moved its output. The first entry that matches is used, so specific entries come before general ones.

The code in the table contains `$inputs` (the operator's input), `$layer` (the layer that it is in), `$lengths`,
`$width` and `$valid` (a mask of valid steps). `explain` replaces them with the names in the user's module. Where a mask
is the fix, and the user's statement is known, `masked_statement.py` writes the fix instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from string import Template
from typing import TYPE_CHECKING, Final, Literal

from lengthwise_export.checking.masked_statement import NAN, axes_of_steps, called_as, write_lengths, write_masked
from lengthwise_export.checking.trials import Change, Geometry

if TYPE_CHECKING:
    from lengthwise_export.checking.recording import Operation

SecondRole = Literal["lengths", "mask", "padding-mask"]  # As `Role` in `tracing.call_signature`

_MASK: Final = "valid = $valid  # [rows, width], true at valid steps\n"
_SHAPE: Final = "  # for $inputs [rows, width, features]"


@dataclass(frozen=True, slots=True)
class ArgumentNames:
    """The names of a module's arguments, for the code of a fix."""

    width: str = "width"
    second: str = "lengths"
    role: SecondRole = "lengths"
    # Code that is shown in the place of that of the table, for a model of another framework; None for the table's
    fix: str | None = None

    @property
    def valid(self) -> str:
        """Code for a mask `[rows, width]` that is true at valid steps."""
        if self.role == "lengths":
            return f"torch.arange({self.width}, device={self.second}.device) < {self.second}[:, None]"
        return f"{self.second}.bool()" if self.role == "mask" else f"~{self.second}.bool()"


@dataclass(frozen=True, slots=True)
class Cause:
    """The cause of a leak as a sentence, and code that fixes it."""

    why: str
    fix: str


DEFAULT_NAMES: Final = ArgumentNames()  # used if the names in the module are not known

_TABLE: Final[tuple[tuple[str, str, str], ...]] = (
    # The operators, and when they are meant for these changes only; the cause; the fix
    (
        r".* when poison",
        "0 * NaN is NaN, and so are 0 * Inf and Inf - Inf: a mask that multiplies or adds does not remove them.",
        _MASK + "$inputs = torch.where(valid[..., None], $inputs, 0.0)" + _SHAPE,
    ),
    (
        r"sort|argsort|topk_rows when order",
        "The rows were sorted and never put back: each answer belongs to another row.",
        "$lengths, order = $lengths.sort(descending=True)\n...\nlogits = logits[order.argsort()]"
        "  # or use pack_padded_sequence(..., enforce_sorted=False)",
    ),
    (
        r"(quantized_)?(lstm|gru|rnn(_tanh|_relu)?)(_cell)?|dynamicquantizelstm|scan|loop when neighbours order",
        "The recurrence runs over the rows of the batch instead of the steps (batch_first is wrong), or one scale is "
        "used for the whole batch.",
        "batch_first=True  # where $layer is made, for inputs [rows, width, features]",
    ),
    (
        r"(quantized_)?(lstm|gru|rnn(_tanh|_relu)?)|dynamicquantizelstm",
        "The recurrent layer does not know the lengths: its reverse direction starts in the padding, and its last "
        "state is at the end of the width, not at the last valid step.",
        "packed = pack_padded_sequence($inputs, $lengths.cpu(), batch_first=True, enforce_sorted=False)\n"
        "packed, state = $layer(packed)\n"
        "outputs, _ = pad_packed_sequence(packed, batch_first=True, total_length=$width)  # ONNX: sequence_lens",
    ),
    (
        r"(quantize|dynamicquantize).*|fake_quantize.*",
        "One scale is used for the whole batch, padding and other rows included.",
        "Quantize with a fixed scale, or one row at a time.",
    ),
    (
        r"batch_?norm.*|batchnormalization",
        "Batch statistics are computed over padding and other rows.",
        "Keep running statistics (track_running_stats=True) and call model.eval(); in training, compute the statistics "
        "over the valid steps only: inputs[valid] is [valid steps, features].",
    ),
    (
        r"group_?norm.*|instance_?norm.*|groupnormalization|instancenormalization",
        "The mean and the variance are computed over all steps of a row, padding included.",
        _MASK + "n = $lengths[:, None, None]" + _SHAPE + "\n"
        "mean = ($inputs * valid[..., None]).sum(1, keepdim=True) / n  # the variance in the same way\n"
        "# or nn.LayerNorm over the features of each step",
    ),
    (
        r"layer_?norm.*|layernormalization|rms_?norm|normalize|(linalg_)?(vector_)?norm|lpnormalization|reducel[12]",
        "The normalisation runs along the steps, so padding is part of the statistics.",
        "norm = nn.LayerNorm(features)  # over the last axis of [rows, width, features], for each step",
    ),
    (
        r"(native_)?(multi_head_attention.*|scaled_dot_product_attention)|attention|multiheadattention",
        "The attention reads padded steps: the mask is missing, inverted, or the same for all rows.",
        _MASK + "outputs, _ = $layer($inputs, $inputs, $inputs, key_padding_mask=~valid)"
        "  # true at steps to ignore\n"
        "# scaled_dot_product_attention: attn_mask=valid[:, None, None, :], true at steps to read",
    ),
    (
        r"(log_?)?soft(max|min)|logsumexp|reducelogsumexp when neighbours order",
        "The softmax runs over the rows of the batch, so the weights of one row depend on the others.",
        "weights = $inputs.softmax(dim=1)  # for scores [rows, width]",
    ),
    (
        r"(log_?)?soft(max|min)|logsumexp|reducelogsumexp",
        "Padded steps take part in the softmax: it runs before the mask, or the masked scores are not low enough (a "
        "product with 0 gives a score of 0, which is not low).",
        _MASK + "$inputs = $inputs.masked_fill(~valid, torch.finfo($inputs.dtype).min)  # for $inputs [rows, width]\n"
        "weights = $inputs.softmax(dim=1)",
    ),
    (
        r"conv.*|unfold|(quantized_)?conv.*",
        "A convolution at the last valid steps reads the padding, which is not 0 there: a bias, a norm or an "
        "activation before it changes the zeros.",
        _MASK + "$inputs = $inputs.masked_fill(~valid[:, None, :], 0.0)"
        "  # before every convolution, for inputs [rows, channels, width]\n"
        "$inputs = $layer($inputs)",
    ),
    (
        r"adaptive_.*pool.*|interpolate|upsample.*|resize",
        "It divides the whole width, padding included, into equal parts.",
        _MASK + "pooled = $inputs.masked_fill(~valid[:, None, :], 0.0).sum(2) / $lengths[:, None]"
        "  # for $inputs [rows, channels, width]; or resample each sequence before it is padded",
    ),
    (
        r"(global)?(max|avg|average|lp).*pool.*",
        "The last window contains both valid steps and padding.",
        _MASK + "$inputs = $inputs.masked_fill(~valid[:, None, :], float('-inf'))"
        "  # before a max pooling, for $inputs [rows, channels, width]\n"
        "# an average pooling: sum over the window, and divide by the number of valid steps in it",
    ),
    (
        r"flip|fliplr|reversesequence|roll",
        "The order of the steps is reversed over the whole width, so padding comes first.",
        "t = torch.arange($width, device=$inputs.device)" + _SHAPE + "\n"
        "index = torch.where(t < $lengths[:, None], $lengths[:, None] - 1 - t, t)  # each row within its own length\n"
        "$inputs = $inputs.gather(1, index[..., None].expand_as($inputs))",
    ),
    (
        r"cum(sum|prod|max|min)|logcumsumexp",
        "A cumulative sum runs from the end, or its total is used, so it includes the padding.",
        _MASK + "$inputs = $inputs.masked_fill(~valid[..., None], 0.0)" + _SHAPE + "\ntotal = $inputs.cumsum(1)",
    ),
    (
        r"(r|i|h|ir)?fft.*|(i)?stft|(i)?dft|stft",
        "A Fourier transform along the steps treats the padding as part of the signal.",
        "Transform the sequences one by one before they are padded, or use fixed windows inside the length.",
    ),
    (
        r"linspace|arange|range|shape|size|positional.*",
        "Positions are relative to the width, so they change with the padding.",
        "position = torch.arange($width, device=$lengths.device) / $lengths[:, None]  # relative to each row's length",
    ),
    (
        r"(a|amin|arg|reduce|abs)?max|(a|arg|reduce)?min|maximum|minimum|(reduce)?mean|std|var.*|median when lengths",
        "A number is computed over all rows (the longest length, the mean of the batch), so other rows change it.",
        "$lengths[:, None]  # use each row's own length instead",
    ),
    (
        r"(nan)?(mean|sum)|max|amax|aminmax|min|amin|std|var.*|median|norm|reduce.*|quantile when neighbours order",
        "It reduces over the rows of the batch, so the answer to one row depends on the others.",
        "$inputs.mean(dim=1)  # over the steps of a row, never over dim 0; compute a scale once, from training data",
    ),
    (
        r"max|amax|reducemax|aminmax|min|amin|reducemin|argmax|argmin|topk|kthvalue|median|quantile|sort|argsort|mode",
        "Padded steps compete with the valid ones for the largest (or middle) value.",
        _MASK + "$inputs = $inputs.masked_fill(~valid[..., None], torch.finfo($inputs.dtype).min)" + _SHAPE + "\n"
        "top = $inputs.max(dim=1).values",
    ),
    (
        r"mean|nanmean|reducemean|average|std|var.*|std_mean|cov|corrcoef",
        "The mean over the steps includes the padding, and divides by the width instead of the length.",
        _MASK + "mean = $inputs.masked_fill(~valid[..., None], 0.0).sum(1) / $lengths[:, None]" + _SHAPE,
    ),
    (
        r"(nan)?sum|count_nonzero|prod|reducesum.*|reduceprod|any|all",
        "The sum over the steps includes padding that is not 0, or the lengths are inferred from zeros.",
        _MASK + "total = $inputs.masked_fill(~valid[..., None], 0.0).sum(1)" + _SHAPE,
    ),
    (
        r"matmul|__r?matmul__|bmm|baddbmm|einsum|mm|addmm|mv|dot|inner|tensordot|linear|gemm",
        "The matrix product sums over the steps and includes padding: a weight or a value there is not 0.",
        _MASK + "weights = weights.masked_fill(~valid, 0.0)"
        "  # for weights [rows, width]; and make values at padding finite, so 0 * value is 0",
    ),
    (
        r"__getitem__|select|index_select|gather.*|take.*|narrow|slice|split.*|chunk|unbind|clamp|clip",
        "It reads a step at a fixed position of the width, or one past the length: at the end of the width there is "
        "padding for every row but the longest.",
        "last = $inputs[torch.arange(len($lengths), device=$lengths.device), $lengths - 1]" + _SHAPE,
    ),
    (
        r"reshape|view|flatten|clone|contiguous|permute|transpose|squeeze|unflatten|t|swapaxes|movedim",
        "Axes are mixed up: values of a row come from other rows, or the width becomes features.",
        "$inputs.transpose(0, 1).flatten(1)  # [directions, rows, hidden] to [rows, directions * hidden]",
    ),
    (
        r".* when neighbours order lengths batch",
        "Its output for one row depends on the other rows of the batch.",
        "Compute it row by row: no reduction over dim 0, and no number that depends on all lengths.",
    ),
    (
        r".* when width",
        "Its output at valid steps depends on the width of the batch.",
        "Compute it from the lengths of the sequences, not from the width of the batch.",
    ),
    (
        r".*",
        "It carries padding into valid steps.",
        _MASK + "$inputs = torch.where(valid[..., None], $inputs, 0.0)" + _SHAPE + ", before it",
    ),
)


_TO_ADAPT: Final = "# to adapt, not to paste: more than this statement has to change; inputs: what the operator gets\n"
_NAN_BEGINS: Final = (
    "Padded steps become NaN here, although the sequence alone is finite, and no product with a mask removes that: "
    "0 * NaN is NaN."
)

ANOTHER_WAY: Final = Cause(
    "A sequence alone goes another way through the code, by a branch on the number of rows or on the whole mask, and "
    "gets another answer than in a batch.",
    "# take the branch out, or compute the same in both of its ways",
)
"""The cause of a leak in a row alone that no operator of the usual way shows."""


def explain_nan(at: Operation, names: ArgumentNames, run: Geometry) -> Cause:
    """The cause of a leak at an operation that gives NaN in a padded run, and a fix."""
    shape = at.outputs[0][1].shape
    rows, steps = ([axis for axis, size in enumerate(shape) if size == own] for own in (run.rows, run.width))
    written = None
    if rows and steps:  # of the scores [rows, width, width] of an attention, whole steps
        written = write_masked(replace(at, shape=shape, reduced=(steps[0],)), (rows[0], steps[0]), names, NAN)
    return Cause(_NAN_BEGINS, explain(at, "poison", names).fix if written is None else written)


def explain(at: Operation, change: Change, names: ArgumentNames = DEFAULT_NAMES, run: Geometry | None = None) -> Cause:
    """The cause of a leak at an operation of a run, and a fix in the names of the user's module."""
    axes = None if run is None else axes_of_steps(at, run)
    reduces_rows = axes is None or axes[0] in at.reduced
    if not reduces_rows and change in ("neighbours", "order", "lengths"):  # so the steps move it
        change = "padding"
    parts = ((*operators.partition(" when "), why, fix) for operators, why, fix in _TABLE)
    why, fix = next(
        (why, fix)
        for kinds, _, changes, why, fix in parts
        if (not changes or change in changes.split()) and re.fullmatch(kinds, at.kind.lower())
    )
    if names.fix is not None:
        return Cause(why, names.fix)
    written = write_masked(at, axes, names) if axes else None
    if run is not None and written is None:
        written = write_lengths(at, run, names)
    if written is not None:
        return Cause(why, written)
    before = "" if at.location is None else _TO_ADAPT
    if names.role != "lengths" and "$lengths" in fix:
        before += f"lengths = {names.second if names.role == 'mask' else f'({names.valid})'}.sum(1)\n"
    words = {"lengths": names.second if names.role == "lengths" else "lengths", "width": names.width}
    layer = min((name for name in called_as(at) if name.startswith("self.")), key=len, default="layer")
    return Cause(why, Template(before + fix).substitute(words, valid=names.valid, layer=layer, inputs="inputs"))
