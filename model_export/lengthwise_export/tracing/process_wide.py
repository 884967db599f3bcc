"""The lock for everything in the exporter that changes the whole process for a while.

A trace replaces functions of torch, and a check installs global hooks: exports and checks in several threads run one
after the other. Code outside this package that uses torch in another thread is not protected.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

PROCESS_WIDE: Final = threading.RLock()  # Held while such a change is in force; they are nested


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Makes torch compute in so many threads during the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def torch_as_before(target: object = None) -> Iterator[None]:
    """Restores torch's random numbers, and a module that is the target; one call at a time is in this block."""
    with PROCESS_WIDE, ExitStack() as stack:
        if (torch := sys.modules.get("torch")) is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            if isinstance(target, torch.nn.Module):
                from lengthwise_export.tracing.module_state import ModuleState  # brings torch along

                stack.callback(ModuleState(target).restore)
        yield
