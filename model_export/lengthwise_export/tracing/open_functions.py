"""Functions of torch whose own implementation needs a size as a number, computed with a dynamic size instead.

A trace uses these instead of the functions of the same names (see `dynamic_shapes`). They give the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional

_Size = int | Sequence[int]

_PLAIN: Final[Mapping[str, Any]] = MappingProxyType(
    {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False, "divisor_override": None}
)
"""The options of a pool of images, without which only its kernel counts."""


def is_open(size: Any) -> bool:
    """Whether a size is dynamic: a symbol, not a number."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _take_along_dim(tensor: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """A `gather`; torch's own function compares all sizes."""
    if dim is None:
        return torch.take_along_dim(tensor, indices)
    sizes = list(tensor.shape)
    sizes[dim] = indices.shape[dim]
    return tensor.gather(dim, indices.expand(sizes))


def _max_pool1d(
    steps: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    dilation: _Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """A `max_pool2d` of height 1, or a maximum over all steps; `return_indices` is never set here."""
    kernel = _one(kernel_size)
    if _is_size_of(kernel, steps, -1):
        return steps.amax(-1, keepdim=True)
    pooled = functional.max_pool2d(
        steps.unsqueeze(-2),
        kernel_size=(1, kernel),
        stride=(1, _one(stride or kernel_size)),
        padding=(0, _one(padding)),
        dilation=(1, _one(dilation)),
        ceil_mode=ceil_mode,
    )
    return pooled.squeeze(-2)


def _avg_pool1d(steps: Tensor, kernel_size: _Size, *args: Any, **kwargs: Any) -> Tensor:
    """A mean over all steps, if the kernel is as wide as the batch."""
    kernel = _one(kernel_size)
    if _is_size_of(kernel, steps, -1):
        return steps.mean(-1, keepdim=True)
    return functional.avg_pool1d(steps, kernel, *args, **kwargs)


def _over_whole_axes(pool: Callable[..., Tensor], reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A pool of images whose kernel may be as wide or as high as the image: that axis is reduced first."""

    def pooled(image: Tensor, kernel_size: _Size, *args: Any, **kwargs: Any) -> Tensor:
        kernel = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size, kernel_size)
        whole = [axis for axis in (-2, -1) if _is_size_of(kernel[axis], image, axis)]
        is_plain = not args and all(kwargs.get(name, usual) == usual for name, usual in _PLAIN.items())
        if not whole or not is_plain:
            return pool(image, kernel_size, *args, **kwargs)
        rest = tuple(1 if axis in whole else kernel[axis] for axis in (-2, -1))
        image = reduce(image, whole, keepdim=True)
        return image if rest == (1, 1) else pool(image, rest)

    return pooled


def _embedding_bag(ids: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An embedding and a reduction, for a batch of ids without weights of their own."""
    plain = {"mode", "norm_type", "scale_grad_by_freq", "sparse"}
    is_plain = not args and all(name in plain or value is None or value is False for name, value in kwargs.items())
    if ids.dim() != 2 or not is_plain:
        return functional.embedding_bag(ids, weight, *args, **kwargs)
    embedded = functional.embedding(ids, weight)
    mode = kwargs.get("mode", "mean")
    return embedded.mean(1) if mode == "mean" else embedded.sum(1) if mode == "sum" else embedded.amax(1)


def _adaptive_pool1d(
    pool: Callable[..., Tensor], reduce: Callable[..., Tensor], reduce_bins: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[..., Tensor]:
    """An adaptive pool of steps, for a width that is open in the graph.

    One bin is a reduction of all steps. Several are torch's own pool if the width is fixed, else a reduction of each.

    Args:
        pool: Torch's own function.
        reduce: Reduces an axis.
        reduce_bins: Reduces `steps [..., width]` to `[..., bins]`, with the two results of `_bins`.
    """

    def pooled(steps: Tensor, output_size: _Size, return_indices: bool = False) -> Tensor:
        """As torch's own; `return_indices` is never set here."""
        bins = _one(output_size)
        if bins == 1:
            return reduce(steps, -1, keepdim=True)
        width = steps.shape[-1]
        return reduce_bins(steps, *_bins(width, bins)) if is_open(width) else pool(steps, bins)

    return pooled


def _to_one(pool: Callable[..., Tensor], reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An adaptive pool of images, reduced over the axes that it pools to one."""

    def pooled(image: Tensor, output_size: Any, *args: Any, **kwargs: Any) -> Tensor:
        sizes = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
        ones = [axis for axis in (-2, -1) if sizes[axis] == 1]
        if not ones or any(sizes[axis] not in (1, None) for axis in (-2, -1)):
            return pool(image, output_size, *args, **kwargs)
        return reduce(image, ones, keepdim=True)

    return pooled


def _bins(width: int, bins: int) -> tuple[Tensor, Tensor]:
    """The steps in each bin of an adaptive pool: bool `[width, bins]`, and their number `[bins]`. Bins may overlap."""
    indices = torch.arange(bins)
    starts = indices * width // bins
    ends = ((indices + 1) * width + (bins - 1)) // bins
    steps = torch.arange(width).unsqueeze(1)
    return (steps >= starts) & (steps < ends), ends - starts


def _linspace(start: Any, end: Any, steps: int, **options: Any) -> Tensor:
    """`arange`, scaled; torch's own function needs the number of steps."""
    if not is_open(steps):
        return torch.linspace(start, end, steps, **options)
    share = torch.arange(steps) / torch.sym_max(steps - 1, 1)  # type: ignore[no-untyped-call]  # torch's own
    scaled: Tensor = start + share * (end - start)
    return scaled.to(options.get("dtype") or torch.get_default_dtype())


def _scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Gives inputs of three axes an axis of one head, because the ONNX exporter takes four axes only."""
    if query.dim() != 3:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unsqueeze(1)
    query, key, value = (each.unsqueeze(1) for each in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs).squeeze(1)


def _instance_norm(
    steps: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *args: Any,
) -> Tensor:
    """With running statistics a BatchNorm; torch's own function repeats them for each row."""
    if use_input_stats:
        return functional.instance_norm(steps, running_mean, running_var, weight, bias, True, momentum, eps)
    return functional.batch_norm(steps, running_mean, running_var, weight, bias, False, momentum, eps)


def _clamp(tensor: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Bounds of one type; the exporter takes no other."""
    if tensor.is_floating_point():
        min, max = (float(bound) if isinstance(bound, int) else bound for bound in (min, max))
    return torch.clamp(tensor, min, max)


def _squeeze(tensor: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Takes away axes of size 1, but not the rows or the width, whatever their size will be."""
    if tensor.dim() == 0:
        return tensor
    axes = range(tensor.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    ones = tuple(axis for axis in axes if not is_open(tensor.shape[axis]) and tensor.shape[axis] == 1)
    return tensor.squeeze(ones) if ones else tensor


def _one(size: _Size) -> int:
    """A size of one axis, which torch also takes as a list of one number."""
    return size[0] if isinstance(size, Sequence) else size


def _is_size_of(size: int, tensor: Tensor, axis: int) -> bool:
    """Whether a kernel size is the dynamic size of an axis."""
    return is_open(size) and statically_known_true(size == tensor.shape[axis])


SUBSTITUTES: Final[Mapping[str, Callable[..., Tensor]]] = MappingProxyType(
    {
        "take_along_dim": _take_along_dim,
        "max_pool1d": _max_pool1d,
        "avg_pool1d": _avg_pool1d,
        "avg_pool2d": _over_whole_axes(functional.avg_pool2d, torch.mean),
        "max_pool2d": _over_whole_axes(functional.max_pool2d, torch.amax),
        "embedding_bag": _embedding_bag,
        "adaptive_avg_pool1d": _adaptive_pool1d(
            functional.adaptive_avg_pool1d,
            torch.mean,
            lambda steps, inside, counts: torch.matmul(steps, inside.to(steps.dtype) / counts),
        ),
        "adaptive_max_pool1d": _adaptive_pool1d(
            functional.adaptive_max_pool1d,
            torch.amax,
            lambda steps, inside, _: torch.where(inside, steps.unsqueeze(-1), float("-inf")).amax(-2),
        ),
        "adaptive_avg_pool2d": _to_one(functional.adaptive_avg_pool2d, torch.mean),
        "adaptive_max_pool2d": _to_one(functional.adaptive_max_pool2d, torch.amax),
        "linspace": _linspace,
        "squeeze": _squeeze,
        "clamp": _clamp,
        "clip": _clamp,
        "instance_norm": _instance_norm,
        "scaled_dot_product_attention": _scaled_dot_product_attention,
    }
)
"""The functions by the names of those that they replace."""

RETURN_INDICES: Final = frozenset({torch.adaptive_max_pool1d})  # They return a pair
