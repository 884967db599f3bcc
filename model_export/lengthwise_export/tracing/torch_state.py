"""Leaves torch as it was: a call from Python changes neither torch's state nor a caller's module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lengthwise_export.tracing.process_wide import PROCESS_WIDE


@contextmanager
def torch_as_before(target: object = None) -> Iterator[None]:
    """Restores torch's random numbers, and a module that is the target; one call at a time is in this block."""
    with PROCESS_WIDE, ExitStack() as stack:
        torch = sys.modules.get("torch")
        if torch is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            if isinstance(target, torch.nn.Module):
                from lengthwise_export.tracing.module_state import ModuleState  # brings torch along

                stack.callback(ModuleState(target).restore)
        yield
