"""What changes the whole process is done by one thread at a time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lengthwise.padding import pad
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.tracing.call_signature import CallSignature, without_fast_path
from lengthwise_export.tracing.capture import capture
from lengthwise_export.tracing.outputs import output_selector
from lengthwise_export.tracing.process_wide import PROCESS_WIDE

PATCHED = ("len", "int", "range")


def is_free() -> bool:
    """Whether another thread could take the lock now."""

    def take() -> bool:
        taken = PROCESS_WIDE.acquire(blocking=False)
        if taken:
            PROCESS_WIDE.release()
        return taken

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(take).result()


class Asking(nn.Module):
    """Notes, each time it runs, whether another thread could change the process now."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.free: list[bool] = []

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.free.append(is_free())
        return self.head(x[:, 0])


def test_the_lock_is_held_while_the_fast_path_is_off_and_both_are_restored() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    with without_fast_path():
        assert not is_free()
        with without_fast_path():
            assert not is_free()
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert is_free()


def test_a_module_is_traced_with_the_lock_held() -> None:
    module = Asking().eval()
    capture(module, StepInput(features=3), signature=CallSignature(), select_output=output_selector(None))
    assert module.free
    assert not any(module.free)
    assert is_free()
    assert not set(PATCHED) & set(globals())


@pytest.mark.parametrize("run", ["answer", "answer_as_shipped", "record"])
def test_a_module_is_checked_with_the_lock_held(run: str) -> None:
    module = Asking()
    subject = TorchSubject(module, StepInput(features=3), CallSignature(), output_selector(None))
    getattr(subject, run)(pad([torch.zeros(2, 3).numpy()]))
    assert module.free == [False]
