"""The lock for everything in the exporter that changes the whole process for a while, and what makes such changes.

A trace replaces functions of torch, and a check installs global hooks: exports and checks in several threads run one
after the other. Code outside this package that uses torch in another thread is not protected.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

PROCESS_WIDE: Final = threading.RLock()  # Held while such a change is in force; changes may be nested


@contextmanager
def replaced(*attributes: tuple[Any, str, object]) -> Iterator[None]:
    """Sets attributes of modules and classes during the block, then puts the earlier values back.

    Args:
        *attributes: The module or class, the name of the attribute, and the value. An attribute that the module or
            class does not have itself is deleted after the block.
    """
    with PROCESS_WIDE, ExitStack() as cleanup:
        for owner, name, value in attributes:
            if name in vars(owner):  # not `hasattr`, with which a lazy module would import something
                cleanup.callback(setattr, owner, name, vars(owner)[name])
            else:
                cleanup.callback(delattr, owner, name)
            setattr(owner, name, value)
        yield


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Makes torch compute in `count` threads during the block, then in as many as before."""
    import torch

    former_count = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former_count)


@contextmanager
def torch_as_before(target: object = None) -> Iterator[None]:
    """Restores the state of torch's random numbers after the block, and the state of `target` if it is a module.

    Only one thread at a time is in this block. If the process has not imported torch, nothing is restored.
    """
    with PROCESS_WIDE, ExitStack() as stack:
        if (torch := sys.modules.get("torch")) is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            if isinstance(target, torch.nn.Module):
                from lengthwise_export.tracing.module_state import ModuleState  # brings torch along

                stack.callback(ModuleState(target).restore)
        yield
