"""Modules that change themselves in evaluation mode, each with lengths and without; and others that only look so.

The line that changes what later answers depend on is marked.
"""

import linecache
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MARKER: Final = "# changes"


class _Module(nn.Module):
    """A GRU and a linear layer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.set_up()

    def set_up(self) -> None:
        """Adds what the module remembers."""

    def before(self, x: Tensor) -> Tensor:
        """What the GRU gets."""
        return x

    def behind(self, h: Tensor) -> Tensor:
        """What the linear layer gets."""
        return h


def with_lengths(kind: type[_Module]) -> nn.Module:
    """The module with lengths as its second argument: the last state of each sequence."""

    class WithLengths(kind):  # type: ignore[valid-type, misc]  # a class given at run time
        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(self.before(x), lengths, True, enforce_sorted=False)
            return self.head(self.behind(self.rnn(packed)[1][-1]))

    return WithLengths()


def alone(kind: type[_Module]) -> nn.Module:
    """The module that takes the steps alone: the mean of the states."""

    class Alone(kind):  # type: ignore[valid-type, misc]  # a class given at run time
        def forward(self, x: Tensor) -> Any:
            return self.head(self.behind(self.rnn(self.before(x))[0].mean(1)))

    return Alone()


class FitsABuffer(_Module):
    mean: Tensor
    fitted: Tensor

    def set_up(self) -> None:
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("fitted", torch.tensor(False))

    def before(self, x: Tensor) -> Tensor:
        if not self.fitted:
            self.mean.copy_(x.mean((0, 1)) + 1)  # changes
            self.fitted.fill_(True)
        return x - self.mean


class FitsAParameter(_Module):
    def set_up(self) -> None:
        self.place = nn.Parameter(torch.zeros(4))
        self.ready = False

    def before(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.place.data = x.mean((0, 1)) + 1  # changes
            self.ready = True
        return x - self.place


class RunningMean(_Module):
    running: Tensor

    def set_up(self) -> None:
        self.register_buffer("running", torch.zeros(4))

    def before(self, x: Tensor) -> Tensor:
        self.running.mul_(0.9).add_(0.1 * x.mean((0, 1)))  # changes
        return x - self.running


class CountsCalls(_Module):
    def set_up(self) -> None:
        self.calls = 0

    def before(self, x: Tensor) -> Tensor:
        self.calls += 1  # changes
        return x * (1 + 0.1 * (self.calls % 3))


class RemembersTheLastLength(_Module):
    def set_up(self) -> None:
        self.last = 0

    def before(self, x: Tensor) -> Tensor:
        before = self.last or x.shape[1]
        self.last = x.shape[1]  # changes
        return x / before


class RemembersTheFirstBatch(_Module):
    def set_up(self) -> None:
        self.memory: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        if self.memory is None:
            self.memory = x[:1, :1].clone()  # changes
        return x - self.memory


class RemembersTheRowsOfTheFirstBatch(_Module):
    """Raises for a batch of another number of rows."""

    def set_up(self) -> None:
        self.memory: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        if self.memory is None:
            self.memory = x.mean(1, keepdim=True)  # changes
        return x - self.memory


class RemembersFourCalls(_Module):
    def set_up(self) -> None:
        self.seen: list[float] = []

    def before(self, x: Tensor) -> Tensor:
        if len(self.seen) < 4:
            self.seen.append(float(x.mean()))  # changes
        return x - sum(self.seen) / 4


class DrawsALayer(_Module):
    def set_up(self) -> None:
        self.extra: nn.Module | None = None

    def behind(self, h: Tensor) -> Tensor:
        if self.extra is None:
            self.extra = nn.Linear(8, 8)  # changes
        return h + self.extra(h)  # type: ignore[no-any-return]


class OfTheClass(_Module):
    first: ClassVar[float | None] = None

    def before(self, x: Tensor) -> Tensor:
        if OfTheClass.first is None:
            OfTheClass.first = float(x.mean())  # changes
        return x - OfTheClass.first


class InAHook(_Module):
    def set_up(self) -> None:
        calls = {"calls": 0}

        def louder(part: nn.Module, given: Any, answer: Tensor) -> Tensor:
            calls["calls"] += 1  # changes
            return answer * calls["calls"]

        self.head.register_forward_hook(louder)


class _Memo:
    def __init__(self) -> None:
        self.value: Tensor | None = None

    def see(self, x: Tensor) -> Tensor:
        if self.value is None:
            self.value = x.mean()  # changes
        return self.value


class InAnotherObject(_Module):
    def set_up(self) -> None:
        self.memo = _Memo()

    def before(self, x: Tensor) -> Tensor:
        return x - self.memo.see(x)


class Random(_Module):
    """Is random, and counts its calls besides."""

    def set_up(self) -> None:
        self.calls = 0

    def before(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.dropout(x, 0.1)  # changes


CHANGING: Final[dict[type[_Module], str]] = {
    FitsABuffer: "`mean`",
    FitsAParameter: "`place`",
    RunningMean: "`running`",
    CountsCalls: "`calls`",
    RemembersTheLastLength: "`last`",
    RemembersTheFirstBatch: "`memory`",
    RemembersTheRowsOfTheFirstBatch: "`memory`",
    RemembersFourCalls: "`seen`",
    DrawsALayer: "`extra`",
    OfTheClass: "`OfTheClass.first`",
    InAHook: "`calls`",
    InAnotherObject: "`memo.value`",
    Random: "random",
}
"""Each with what a refusal has to name."""


class TableThatGrows(_Module):
    def set_up(self) -> None:
        self.table = torch.zeros(0, 4)

    def before(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.table.shape[0]:
            self.table = torch.sin(torch.arange(x.shape[1]).unsqueeze(1) / torch.tensor([1.0, 3.0, 10.0, 30.0]))
        return x + self.table[: x.shape[1]]


class TableThatGrowsToAnEnd(TableThatGrows):
    def before(self, x: Tensor) -> Tensor:
        if x.shape[1] > 75:
            raise ValueError("no more than 75 steps")
        return super().before(x)


class TableForEachWidth(_Module):
    def set_up(self) -> None:
        self.tables: dict[int, Tensor] = {}

    def before(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        if width not in self.tables:
            self.tables[width] = torch.arange(width).unsqueeze(1) * 0.01
        return x + self.tables[width]


class MaskMadeWhenNeeded(_Module):
    def set_up(self) -> None:
        self.causal: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        if self.causal is None or self.causal.shape[0] != width:
            self.causal = torch.tril(torch.ones(width, width))
        return x + 0.1 * (self.causal @ x.tanh())


class IdleCounter(_Module):
    steps_seen: Tensor

    def set_up(self) -> None:
        self.calls = 0
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.long))

    def before(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps_seen += x.shape[1]
        self.rnn.flatten_parameters()
        return x


class KeepsItsAttention(_Module):
    def set_up(self) -> None:
        self.attention: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        self.attention = x.softmax(-1)
        return x * self.attention


class MakesAnew(dict[str, Any]):
    """A registry that makes a new layer for each look into it, as that of activations in transformers."""

    def __getitem__(self, key: str) -> nn.Module:
        return dict.__getitem__(self, key)()  # type: ignore[no-any-return]

    def keys(self) -> Any:
        return list(self)


REGISTRY: Final = MakesAnew(tanh=nn.Tanh)


class LooksIntoARegistry(_Module):
    """Takes its activation from a registry of the module's globals."""

    def behind(self, h: Tensor) -> Tensor:
        activation: Tensor = REGISTRY["tanh"](h)
        return activation


class RaisesWhenAsked:
    """Raises for each attribute that it lacks, as what stands for a thing that is not made yet."""

    def __getattr__(self, name: str) -> Any:
        raise TypeError(f"{name} is not there yet")


NOT_MADE_YET: Final = RaisesWhenAsked()


class NamesWhatRaises(_Module):
    """Names a global that raises for each attribute that it lacks."""

    def behind(self, h: Tensor) -> Tensor:
        return h if NOT_MADE_YET is not None else -h


LOOK_ALIKES: Final = (
    LooksIntoARegistry,
    NamesWhatRaises,
    TableThatGrows,
    TableThatGrowsToAnEnd,
    TableForEachWidth,
    MaskMadeWhenNeeded,
    IdleCounter,
    KeepsItsAttention,
)


class Lazy(_Module):
    """Has no weights before its first call."""

    def set_up(self) -> None:
        self.projection = nn.LazyLinear(4)

    def before(self, x: Tensor) -> Tensor:
        return self.projection(x)  # type: ignore[no-any-return]


def marked_line(kind: type[_Module]) -> int:
    """The marked line of a class, or of the one that it uses."""
    lines = linecache.getlines(__file__)
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"class {kind.__name__}("))
    begin = next((i for i, line in enumerate(lines) if kind is InAnotherObject and "_Memo:" in line), begin)
    return next(i for i, line in enumerate(lines[begin:], begin + 1) if MARKER in line)
