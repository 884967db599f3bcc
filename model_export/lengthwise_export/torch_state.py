"""Leaves torch as it was: a call from Python changes neither torch's state nor a caller's module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lengthwise_export.tracing.process_wide import PROCESS_WIDE


@contextmanager
def torch_as_before(target: object = None) -> Iterator[None]:
    """Restores torch's random numbers, and a module that is the target; one call at a time is in this block."""
    with PROCESS_WIDE, ExitStack() as stack:
        torch = sys.modules.get("torch")
        if torch is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            if isinstance(target, torch.nn.Module):
                stack.enter_context(_module_as_before(target))
        yield


@contextmanager
def _module_as_before(module: Any) -> Iterator[None]:
    """Restores a module's training mode, parameters and buffers after the block."""
    import torch

    training = [(part, part.training) for part in module.modules()]
    tensors = [
        (part, name, tensor, tensor.detach().clone())
        for part in module.modules()
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    ]
    try:
        yield
    finally:
        for part, mode in training:
            part.training = mode
        with torch.no_grad():
            for part, name, tensor, values in tensors:
                setattr(part, name, tensor)
                if tensor.device.type != "meta" and not torch.equal(tensor, values):
                    tensor.copy_(values)
