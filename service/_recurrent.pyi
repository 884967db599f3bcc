"""LSTM and GRU for onnxruntime that compute valid steps only (`_recurrent.c`); see `service.recurrent`."""

INSTRUCTION_SETS: tuple[str, ...]
"""Those that this processor has, best first."""

def chosen() -> str | None:
    """The instruction set that sessions opened from now on use; None where there is none."""

def choose(instruction_set: str, /) -> None:
    """Makes the kernels of sessions opened from now on use one; ValueError of one that this processor has not."""
