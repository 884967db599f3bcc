"""The gallery's catalogue: models as their users wrote them, and the right verdict on each.

Each torch model is a name in a file of `torch_leaking/`, `torch_sound/` or `torch_refused/`: a factory that takes
nothing, seeds itself, and has what an `Exhibit` says beside it. Each ONNX model is a function of `onnx_leaking.py`,
`onnx_sound.py` or `onnx_refused.py` that gives a `ModelProto`.

What counts as the operator where a leak begins: the first one, in the order of execution, with an output that differs
at a valid position, or as a whole where it has no time axis, and whose difference reaches an answer. The last clause
matters for values that differ and are thrown away (the final state of the LSTM in `last_step`) and for those whose
difference is undone (the order that `pack_padded_sequence` sorts by).

`test_gallery_is_true.py` and `test_refusals_are_true.py` prove the verdicts by running the models, without any checker.
"""

from __future__ import annotations

import ast
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
MARKER = "# leak"

Verdict = Literal["leak", "sound", "warning", "uncheckable"]
"""`warning`: only NaN, Inf or +-1e30 in the padding makes a difference."""


@functools.cache
def sources(room: str) -> dict[str, tuple[Path, range, dict[str, Any]]]:
    """The models of a room: the file and lines of each, from behind those of the model before, and what is said.

    A model is a decorated function, or a class that `seeded` gives a name.
    """
    found = {}
    for path in sorted((HERE / room).glob("*.py")) or [HERE / f"{room}.py"]:
        body = ast.parse(path.read_text()).body
        calls = [node for node in body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)]
        made = {call.value.args[1].id: (call.targets[0].id, call.value) for call in calls}
        start = 0
        for node in body:
            decorated = isinstance(node, ast.FunctionDef) and node.decorator_list
            name, call = (
                (node.name, node.decorator_list[0]) if decorated else made.get(getattr(node, "name", ""), ("", None))
            )
            if call is not None:
                said = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
                said |= {key: (said[key],) for key in ("operator", "cause", "reason") if isinstance(said.get(key), str)}
                found[name] = path, range(start, node.end_lineno), said
                start = node.end_lineno
    return found


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One model and what a right report says about it."""

    room: str  # `torch_` or `onnx_`, and `leaking`, `sound`, `refused`, `blind` or `unmendable`
    name: str  # The factory's, or for ONNX the function's
    verdict: Verdict  # The right one
    # For a leak: a right answer names an operator that contains at least one of these (a module path, a torch function,
    # an ONNX node). `last_step` is told by its line alone, an index having many names
    operator: tuple[str, ...] = ()
    features: int | None = None  # Numbers a step, or None for a token model
    vocabulary: int | None = None  # Number of token ids, for a token model
    # What the model takes beside the steps; None where it takes neither, or does not say which
    second: Literal["lengths", "mask", "padding-mask", "both"] | None = "lengths"
    third: str | None = None  # The mask, for one that takes lengths and a mask
    arguments: tuple[str, ...] = ()  # The names by which it is called, the steps first, where that is not by place
    time_first: bool = False  # Steps come as `[width, rows, features]`
    channels_first: bool = False  # As `[rows, features, width]`, and answers a step as `[rows, classes, width]`
    channels_said: bool = False  # That has to be said: it cannot be read off a graph
    raw: bool = False  # Steps come as `[rows, width]`, without the axis of their one feature
    output: str | int | None = None  # The name or index of the logits where the model answers with several
    per_step: bool = False  # The logits are `[rows, width, classes]`
    shortest: int = 1  # The module raises for a lone sequence shorter than this, or answers NaN
    longest: int | None = None  # It raises for a wider batch: the size of its table of positions, or its only width
    # For an uncheckable one: words of which a right reason contains at least one, in small letters. For one that cannot
    # be mended: of the reason why not
    reason: tuple[str, ...] = ()
    values: str = "values"  # ONNX: the name of the input with the steps
    second_name: str = "lengths"  # ONNX: the name of the input with the lengths or the mask
    named: bool = False  # What the inputs are has to be said: it cannot be read off the target
    published: bool = False  # Built after the published definition of an architecture

    @property
    def is_torch(self) -> bool:
        """Whether the target is a torch factory; else it is built as an ONNX file."""
        return self.room.startswith("torch")

    @property
    def target(self) -> str:
        """`package.module:factory`."""
        file = f".{self.file.stem}" if self.is_torch else ""
        return f"tests.gallery.{self.room}{file}:{self.name}"

    @property
    def file(self) -> Path:
        """The source that the model is written in."""
        return sources(self.room)[self.name][0]

    @property
    def line(self) -> int | None:
        """Where the leak begins: the line of a torch source that ends with the marker; None for all others."""
        if not self.is_torch:
            return None
        file, own, _ = sources(self.room)[self.name]
        lines = file.read_text().splitlines()
        marked = [number + 1 for number in own if lines[number].endswith(MARKER)]
        if len(marked) != (1 if self.verdict == "leak" else 0):
            raise ValueError(f"{self}: {len(marked)} lines end with '{MARKER}'")
        return marked[0] if marked else None

    @property
    def options(self) -> list[str]:
        """What `lengthwise check` has to be told beside the target."""
        said: dict[str, object] = {}
        if self.is_torch and self.features is not None:
            said["--features"] = self.features
        if self.vocabulary is not None:
            said["--vocabulary"] = self.vocabulary
        if self.output is not None:
            said["--output"] = self.output
        if self.second == "padding-mask" or (self.named and self.is_torch):
            said["--second"] = self.second
        elif self.named:
            said |= {"--values": self.values, f"--{self.second}": self.second_name}
        if self.channels_said and not self.is_torch:
            said["--features"] = self.features
        flags = ["--time-first"] * self.time_first + ["--channels-first"] * self.channels_said
        return [str(word) for option in said.items() for word in option] + flags

    def make(self) -> Any:
        """The model: a torch module, in training mode as its factory leaves it, or a `ModelProto`."""
        module, _, factory = self.target.partition(":")
        return getattr(importlib.import_module(module), factory)()

    def save(self, folder: Path) -> Path:
        """Writes an ONNX model as a file, and says where."""
        path = folder / f"{self.name}.onnx"
        path.write_bytes(self.make().SerializeToString())
        return path

    def __str__(self) -> str:
        return f"{self.room}/{self.name}"


def room(name: str, verdict: Verdict, **usual: Any) -> tuple[Exhibit, ...]:
    """The models of a room, with what is said of each beside the model, and what is usual in the room."""
    exhibits = []
    for model, (*_, said) in sorted(sources(name).items()):
        usual["channels_first"] = said.get("channels_said", False)
        exhibits.append(Exhibit(name, model, **{"verdict": verdict, **usual, **said}))
    return tuple(exhibits)


TORCH_LEAKING, TORCH_SOUND = room("torch_leaking", "leak"), room("torch_sound", "sound")
TORCH_REFUSED = room("torch_refused", "uncheckable")
ONNX_LEAKING, ONNX_SOUND = room("onnx_leaking", "leak"), room("onnx_sound", "sound")
ONNX_REFUSED = room("onnx_refused", "uncheckable", features=4)
