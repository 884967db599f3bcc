"""LSTM and GRU for onnxruntime that compute valid steps only (`_recurrent_kernels.c`)."""

INSTRUCTION_SETS: tuple[str, ...]
"""Those that this processor has, best first."""

def chosen() -> str:
    """The instruction set that sessions opened from now on use; RuntimeError where this processor has none."""

def lend(count: int, soon: bool, /) -> None:
    """Says how many cores are idle: as many directions of layers may run beside their own thread.

    `soon` says that a batch is about to run, so that a thread wakes up beforehand.
    """

def helped() -> float:
    """The processor time, in seconds, that other threads have ever worked for this one."""

def background(on: bool, /) -> None:
    """Whether layers that run in this thread let others run first, at each step."""

def spare_cores() -> object:
    """The idle cores that this library counts, and its threads for them: a capsule for `share` of another library."""

def share(spare_cores: object, /) -> None:
    """Makes this library use the idle cores and threads of another, before it has used any."""

def choose(instruction_set: str, /) -> None:
    """Makes the kernels of sessions opened from now on use one; ValueError of one that this processor has not."""
