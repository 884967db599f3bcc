"""LSTM and GRU for onnxruntime in 8-bit integers (`_integer_kernels.c`)."""

INSTRUCTION_SETS: tuple[str, ...]
"""Those that this processor has, best first."""

def chosen() -> str:
    """The instruction set that sessions opened from now on use."""

def choose(instruction_set: str, /) -> None:
    """Makes the kernels of sessions opened from now on use one; ValueError of one that this processor has not."""
