"""Substitutes for functions of torch that need a size as a number: these compute the same with a dynamic size.

A trace calls them instead of the functions of the same names (see `dynamic_shapes`). They take the same arguments and
return the same answers; where torch's own function can be traced, they call it. A size is *open* if it is dynamic.
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

_DEFAULTS_OF_POOL: Final[Mapping[str, Any]] = MappingProxyType(
    {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False, "divisor_override": None}
)
"""The default values of the options of a pool of images; with these, its kernel alone decides its answer."""


def is_open(size: Any) -> bool:
    """Whether a size is dynamic: a symbol, not a number."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _take_along_dim(tensor: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """Substitute for `torch.take_along_dim`: a `gather`, because torch's own function compares all sizes."""
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
    """Substitute for `max_pool1d`: a `max_pool2d` of height 1; a maximum over all steps if the kernel is the width.

    `return_indices` is not used: if a caller sets it, torch calls another function.
    """
    kernel = _number_of(kernel_size)
    if _is_size_of(kernel, steps, -1):
        return steps.amax(-1, keepdim=True)
    pooled = functional.max_pool2d(
        steps.unsqueeze(-2),
        kernel_size=(1, kernel),
        stride=(1, _number_of(stride or kernel_size)),
        padding=(0, _number_of(padding)),
        dilation=(1, _number_of(dilation)),
        ceil_mode=ceil_mode,
    )
    return pooled.squeeze(-2)


def _avg_pool1d(steps: Tensor, kernel_size: _Size, *args: Any, **kwargs: Any) -> Tensor:
    """Substitute for `avg_pool1d`: a mean over all steps if the kernel is as wide as the batch, else torch's own."""
    kernel = _number_of(kernel_size)
    if _is_size_of(kernel, steps, -1):
        return steps.mean(-1, keepdim=True)
    return functional.avg_pool1d(steps, kernel, *args, **kwargs)


def _pool2d(pool: Callable[..., Tensor], reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Makes a substitute for a pool of images whose kernel may be as wide or as high as the image.

    Such an axis is reduced first; then the pool runs with a kernel of 1 along it. A pool with other options than the
    kernel, or with a smaller kernel, is torch's own.

    Args:
        pool: Torch's own function.
        reduce: Reduces axes, as the pool reduces a window: `mean` or `amax`.
    """

    def pooled(image: Tensor, kernel_size: _Size, *args: Any, **kwargs: Any) -> Tensor:
        """Pools images `[..., height, width]` with the arguments of torch's own function."""
        kernel = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size, kernel_size)
        full_axes = [axis for axis in (-2, -1) if _is_size_of(kernel[axis], image, axis)]
        has_options = args or any(kwargs.get(name, default) != default for name, default in _DEFAULTS_OF_POOL.items())
        if not full_axes or has_options:
            return pool(image, kernel_size, *args, **kwargs)
        rest_kernel = tuple(1 if axis in full_axes else kernel[axis] for axis in (-2, -1))
        image = reduce(image, full_axes, keepdim=True)
        return image if rest_kernel == (1, 1) else pool(image, rest_kernel)

    return pooled


def _embedding_bag(ids: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Substitute for `embedding_bag`: an embedding and a reduction over the steps, for ids `[rows, width]`.

    With options that change more than the mode, such as weights of the ids, it is torch's own function.
    """
    kept_options = {"mode", "norm_type", "scale_grad_by_freq", "sparse"}
    is_plain = not args and all(
        name in kept_options or value is None or value is False for name, value in kwargs.items()
    )
    if ids.dim() != 2 or not is_plain:
        return functional.embedding_bag(ids, weight, *args, **kwargs)
    embedded = functional.embedding(ids, weight)
    mode = kwargs.get("mode", "mean")
    return embedded.mean(1) if mode == "mean" else embedded.sum(1) if mode == "sum" else embedded.amax(1)


def _adaptive_pool1d(
    pool: Callable[..., Tensor], reduce: Callable[..., Tensor], reduce_bins: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[..., Tensor]:
    """Makes a substitute for an adaptive pool of steps `[..., width]`, which gives `[..., bins]`.

    One bin is a reduction of all steps. Several bins are torch's own pool if the width is fixed; else each bin is
    reduced.

    Args:
        pool: Torch's own function.
        reduce: Reduces an axis: `mean` or `amax`.
        reduce_bins: Reduces steps `[..., width]` to bins `[..., bins]`: called with the steps, with a mask
            `[width, bins]` of those in each bin, and with their numbers `[bins]`.
    """

    def pooled(steps: Tensor, output_size: _Size, return_indices: bool = False) -> Tensor:
        """Pools the steps; `return_indices` is not used, since torch calls another function if it is set."""
        count = _number_of(output_size)
        if count == 1:
            return reduce(steps, -1, keepdim=True)
        width = steps.shape[-1]
        return reduce_bins(steps, *_bins(width, count)) if is_open(width) else pool(steps, count)

    return pooled


def _adaptive_pool2d(pool: Callable[..., Tensor], reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Makes a substitute for an adaptive pool of images: a reduction of the axes that are pooled to a size of 1.

    It is for output sizes of 1 and None, which keeps the size of an axis. With any other size the pool is torch's own.

    Args:
        pool: Torch's own function.
        reduce: Reduces axes: `mean` or `amax`.
    """

    def pooled(image: Tensor, output_size: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Pools images `[..., height, width]` to these sizes with the arguments of torch's own function."""
        sizes = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
        axes_of_one = [axis for axis in (-2, -1) if sizes[axis] == 1]
        if not axes_of_one or any(sizes[axis] not in (1, None) for axis in (-2, -1)):
            return pool(image, output_size, *args, **kwargs)
        return reduce(image, axes_of_one, keepdim=True)

    return pooled


def _bins(width: int, count: int) -> tuple[Tensor, Tensor]:
    """Which steps are in each bin of an adaptive pool, bool `[width, bins]`, and how many there are, `[bins]`.

    Bins may overlap. `count` is the number of bins.
    """
    indices = torch.arange(count)
    starts = indices * width // count
    ends = ((indices + 1) * width + (count - 1)) // count
    steps = torch.arange(width).unsqueeze(1)
    return (steps >= starts) & (steps < ends), ends - starts


def _linspace(start: Any, end: Any, steps: int, **options: Any) -> Tensor:
    """Substitute for `linspace`: a scaled `arange`, because torch's own function needs the number of steps."""
    if not is_open(steps):
        return torch.linspace(start, end, steps, **options)
    fractions = torch.arange(steps) / torch.sym_max(steps - 1, 1)  # type: ignore[no-untyped-call]  # torch's own
    scaled: Tensor = start + fractions * (end - start)
    return scaled.to(options.get("dtype") or torch.get_default_dtype())


def _scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Substitute for attention on `[rows, width, features]`: adds an axis of one head, and removes it from the answer.

    The ONNX exporter takes four axes only; inputs with four go to torch's own function.
    """
    if query.dim() != 3:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unsqueeze(1)
    query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
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
    """Substitute for `instance_norm`: with running statistics a `batch_norm`, which computes the same.

    torch's own function repeats the statistics for each row, and needs the number of rows.
    """
    if use_input_stats:
        return functional.instance_norm(steps, running_mean, running_var, weight, bias, True, momentum, eps)
    return functional.batch_norm(steps, running_mean, running_var, weight, bias, False, momentum, eps)


def _clamp(tensor: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Substitute for `clamp`: makes the bounds of a float tensor floats, as the exporter takes bounds of one type."""
    if tensor.is_floating_point():
        min, max = (float(bound) if isinstance(bound, int) else bound for bound in (min, max))
    return torch.clamp(tensor, min, max)


def _squeeze(tensor: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Substitute for `squeeze`: removes the axes of size 1, but not a dynamic one, which may be 1 in some batches."""
    if tensor.dim() == 0:
        return tensor
    axes = range(tensor.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    axes_of_one = tuple(axis for axis in axes if not is_open(tensor.shape[axis]) and tensor.shape[axis] == 1)
    return tensor.squeeze(axes_of_one) if axes_of_one else tensor


def _number_of(size: _Size) -> int:
    """The size of one axis as a number; torch also takes it as a list of one number."""
    return size[0] if isinstance(size, Sequence) else size


def _is_size_of(size: int, tensor: Tensor, axis: int) -> bool:
    """Whether a kernel size is dynamic and surely equal to the size of an axis: its window is then the whole axis."""
    return is_open(size) and statically_known_true(size == tensor.shape[axis])


SUBSTITUTES: Final[Mapping[str, Callable[..., Tensor]]] = MappingProxyType(
    {
        "take_along_dim": _take_along_dim,
        "max_pool1d": _max_pool1d,
        "avg_pool1d": _avg_pool1d,
        "avg_pool2d": _pool2d(functional.avg_pool2d, torch.mean),
        "max_pool2d": _pool2d(functional.max_pool2d, torch.amax),
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
        "adaptive_avg_pool2d": _adaptive_pool2d(functional.adaptive_avg_pool2d, torch.mean),
        "adaptive_max_pool2d": _adaptive_pool2d(functional.adaptive_max_pool2d, torch.amax),
        "linspace": _linspace,
        "squeeze": _squeeze,
        "clamp": _clamp,
        "clip": _clamp,
        "instance_norm": _instance_norm,
        "scaled_dot_product_attention": _scaled_dot_product_attention,
    }
)
"""The substitutes, by the names of the functions of torch that they replace."""

RETURN_INDICES: Final = frozenset({torch.adaptive_max_pool1d})
"""Functions with such a name that return a pair of values and indices, and have no substitute."""
