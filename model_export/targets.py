"""What a TARGET is: one value for a spec, a module of the user's, an ONNX file and a model directory.

Whatever it was made with, a target can be put under check, and can say what one of its steps is. What cannot be read
off it is said with options; what contradicts it is an error that names both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import nn

from model_export import checkpoint, graph, trained
from model_export.adopt import Adopted, Said, adopt
from model_export.calling import Calling, calling_of
from model_export.errors import CheckpointError, RunError
from model_export.factory import module_of
from model_export.labels import named_in
from model_export.model import SequenceClassifier
from model_export.options import Options
from model_export.outputs import Choice, chosen_by
from model_export.recording import Subject
from model_export.spec import Spec
from model_export.trace_onnx import OnnxSubject
from model_export.trace_torch import TorchSubject
from model_export.trials import Sampler
from service.errors import ConfigurationError
from service.manifest import GRAPH_FILE, MANIFEST_FILE, GraphNames, Manifest, StepInput
from service.padding import pad

Kind = Literal["spec", "checkpoint", "module", "onnx", "directory"]

FORMS = (
    "a spec of the built-in architecture (*.toml), what `lengthwise train` wrote (*.safetensors, or its folder), "
    "package.module:factory or file.py:factory of a torch module, an ONNX file (*.onnx), or for check a model directory"
)


_APPLY: dict[Kind, frozenset[str]] = {
    "spec": frozenset({"checkpoint", "features", "vocabulary", "classes", "labels"}),
    "module": frozenset(
        {"checkpoint", "features", "vocabulary", "classes", "labels", "time_first", "second", "output"}
    ),
    "onnx": frozenset(
        {"features", "vocabulary", "classes", "labels", "values", "lengths", "mask", "time_first", "output"}
    ),
    "checkpoint": frozenset({"features", "vocabulary", "classes", "labels"}),
    "directory": frozenset({"features", "vocabulary", "classes", "labels"}),
}
"""Which options say something to which kind of target."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model, whatever it was made with.

    Attributes:
        text: As it was named.
        kind: What it is.
        steps: What one step is.
        subject: The model, to be checked.
        labels: Its classes, by the names that were given or by number.
        per_step: Whether it answers each step.
        names: What its graph's inputs and outputs are called.
        build: Makes its graph; told the model's name and the opset.
        framework: Whether it was made in a framework that its graph can be held against.
        checkpoint: The weights that were given for it.
        manifest: That of a model directory.
        spec: That of the built-in architecture.
        notices: What its reader should tell.
    """

    text: str
    kind: Kind
    steps: StepInput
    subject: Subject
    labels: tuple[str, ...]
    per_step: bool
    names: GraphNames
    build: Callable[[str, int], onnx.ModelProto]
    framework: bool
    checkpoint: Path | None = None
    manifest: Manifest | None = None
    spec: Spec | None = None
    notices: tuple[str, ...] = ()


def read(text: str, options: Options) -> Target:
    """Reads a TARGET.

    Raises:
        ConfigurationError: It is no target, cannot be loaded, or is contradicted by an option.
        UncheckableError: It is one, and takes nothing that says where a sequence ends.
    """
    kind = _kind(text)
    if options.checkpoint is not None:
        options = dataclasses.replace(options, checkpoint=trained.located(options.checkpoint))
    for field in dataclasses.fields(options):
        given = getattr(options, field.name)
        if given not in (None, False) and field.name not in _APPLY[kind]:
            raise ConfigurationError(f"--{field.name.replace('_', '-')} says nothing to {text}: it is a {_SAID[kind]}")
    readers: dict[Kind, Callable[[str, Options], Target]] = {
        "spec": _read_spec,
        "checkpoint": _read_checkpoint,
        "module": _read_module,
        "onnx": _read_onnx,
        "directory": _read_directory,
    }
    return readers[kind](text, options)


_SAID: dict[Kind, str] = {
    "spec": "spec of the built-in architecture",
    "checkpoint": "checkpoint of the built-in architecture",
    "module": "torch module",
    "onnx": "ONNX file",
    "directory": "model directory",
}


def _kind(text: str) -> Kind:
    path = Path(text)
    if path.is_dir():
        held = [name for name in (trained.WEIGHTS_FILE, trained.STATE_FILE) if (path / name).is_file()]
        return "checkpoint" if held and not (path / MANIFEST_FILE).exists() else "directory"
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise ConfigurationError(f"there is no file {text}")
        return "checkpoint"
    if path.suffix in (".toml", ".onnx"):
        if not path.is_file():
            raise ConfigurationError(f"there is no file {text}")
        return "spec" if path.suffix == ".toml" else "onnx"
    if ":" in text:
        return "module"
    if path.suffix == ".py":
        raise ConfigurationError(f"{text} is no target: name what makes the module too, as in {text}:FACTORY")
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt") and path.is_file():
        raise ConfigurationError(
            f"{text} holds weights, and not what they are for: name what makes the module too, as in "
            f"package.module:factory --checkpoint {text}"
        )
    raise ConfigurationError(f"{text} is no target: a target is {FORMS}")


def _read_spec(text: str, options: Options) -> Target:
    return _of_spec(text, options, Spec.read(Path(text)), options.checkpoint)


def _read_checkpoint(text: str, options: Options) -> Target:
    path = trained.located(Path(text))
    spec = trained.recorded(path).spec
    if spec is None:
        raise CheckpointError(
            f"{path} does not say which spec it was trained with: give that too, `lengthwise export SPEC.toml "
            f"--checkpoint {path} --out ...`; for a module of yours, package.module:factory --checkpoint {path}"
        )
    return _of_spec(text, options, spec, path)


def _of_spec(text: str, options: Options, spec: Spec, weights: Path | None) -> Target:
    torch.manual_seed(0)
    model = SequenceClassifier(spec).eval()
    notices = [] if weights is None else trained.load(model, spec, weights)
    steps = spec.manifest(name="model", version=1).input
    _hold_against(text, options, steps, spec.output.labels)
    per_step = spec.output.task == "per-step"
    target = _of_module(text, "spec", model, steps, Calling(), chosen_by(None), spec.output.labels, per_step)
    return dataclasses.replace(target, checkpoint=weights, spec=spec, notices=tuple(notices))


def _read_module(text: str, options: Options) -> Target:
    module = module_of(text)
    if options.checkpoint is not None:
        checkpoint.load(module, options.checkpoint)
    calling = calling_of(module, second=options.second, time_first=options.time_first)
    choose = chosen_by(options.output)
    steps, shape = _read_steps(text, module, options, calling, choose)
    labels = _labels(text, options, shape[-1])
    target = _of_module(text, "module", module, steps, calling, choose, labels, per_step=len(shape) == 3)
    return dataclasses.replace(target, checkpoint=options.checkpoint)


def _of_module(
    text: str,
    kind: Kind,
    module: nn.Module,
    steps: StepInput,
    calling: Calling,
    choose: Choice,
    labels: tuple[str, ...],
    per_step: bool,
) -> Target:
    def build(name: str, opset: int) -> onnx.ModelProto:
        return graph.build(module, steps, name=name, labels=labels, calling=calling, choose=choose, opset=opset)

    return Target(
        text=text,
        kind=kind,
        steps=steps,
        subject=TorchSubject(module, steps, calling=calling, choose=choose),
        labels=labels,
        per_step=per_step,
        names=GraphNames(sequences=steps.kind),
        build=build,
        framework=True,
    )


def _read_onnx(text: str, options: Options) -> Target:
    try:
        proto = onnx.load(text)
    except Exception as error:  # protobuf's own kinds, and those of files beside the graph
        raise ConfigurationError(f"{text} cannot be read as ONNX: {error}") from error
    if not proto.graph.output:
        raise ConfigurationError(f"{text} holds no graph: it has no output")
    said = Said(
        values=options.values,
        lengths=options.lengths,
        mask=options.mask,
        time_first=options.time_first,
        output=options.output,
        features=options.features,
        vocabulary=options.vocabulary,
    )
    adopted = adopt(proto, said)
    labels = _labels(text, options, adopted.classes)
    own = named_in(proto)
    if own is not None and len(own) == adopted.classes:
        _hold_against(text, options, adopted.steps, own)
        labels = own
    return _of_graph(text, "onnx", adopted, labels)


def _read_directory(text: str, options: Options) -> Target:
    directory = Path(text)
    if not (directory / MANIFEST_FILE).exists():
        inside = sorted(
            {str(file.parent) for depth in ("*", "*/*") for file in directory.glob(f"{depth}/{MANIFEST_FILE}")}
        )
        instead = f"; there is {', '.join(inside[:5])}" if inside else ""
        raise ConfigurationError(
            f"{text} is a folder with neither {MANIFEST_FILE} (a model directory) nor {trained.WEIGHTS_FILE} (what "
            f"`lengthwise train` wrote){instead}"
        )
    manifest = Manifest.read(directory)
    manifest.check_digests(directory)
    _hold_against(text, options, manifest.input, manifest.labels)
    adopted = Adopted(
        onnx.load(directory / GRAPH_FILE),
        manifest.input,
        manifest.graph,
        manifest.classes,
        per_step=manifest.task == "per-step",
    )
    subject = OnnxSubject(adopted, one_by_one=manifest.max_batch_rows == 1)
    return dataclasses.replace(
        _of_graph(text, "directory", adopted, manifest.labels), manifest=manifest, subject=subject
    )


def _of_graph(text: str, kind: Kind, adopted: Adopted, labels: tuple[str, ...]) -> Target:
    return Target(
        text=text,
        kind=kind,
        steps=adopted.steps,
        subject=OnnxSubject(adopted),
        labels=labels,
        per_step=adopted.per_step,
        names=adopted.names,
        build=lambda name, opset: adopted.graph,
        framework=False,
    )


def _hold_against(text: str, options: Options, steps: StepInput, labels: Sequence[str]) -> None:
    """Compares what was said with what the target says itself."""
    for flag, said, own in (
        ("features", options.features, steps.features),
        ("vocabulary", options.vocabulary, steps.vocabulary),
        ("classes", options.classes, len(labels)),
        ("labels", options.labels, tuple(labels)),
    ):
        if said is not None and said != own:
            raise ConfigurationError(f"--{flag} {said} contradicts {text}, which says {own}")


def _labels(text: str, options: Options, classes: int) -> tuple[str, ...]:
    """The names that were given, or numbers."""
    for flag, said in (("classes", options.classes), ("labels", options.labels and len(options.labels))):
        if said is not None and said != classes:
            raise ConfigurationError(f"--{flag} names {said} classes, {text} answers {classes}")
    return options.labels or tuple(map(str, range(classes)))


def _read_steps(
    text: str, module: nn.Module, options: Options, calling: Calling, choose: Choice
) -> tuple[StepInput, tuple[int, ...]]:
    """What one step is, and the shape of an answer: as said, or by what the module's layers take and run with."""
    if options.features is not None and options.vocabulary is not None:
        raise ConfigurationError("--features and --vocabulary: a step is either numbers or a token id, not both")
    if options.features is not None:
        candidates = [StepInput(features=options.features)]
    elif options.vocabulary is not None:
        candidates = [StepInput(kind="tokens", vocabulary=options.vocabulary)]
    else:
        candidates = list(dict.fromkeys(_likely_steps(module)))
    running, errors = [], []
    for steps in candidates:
        subject = TorchSubject(module, steps, calling=calling, choose=choose)
        sampler = Sampler(steps, seed=0)
        batch = pad([sampler.sequence(length) for length in (5, 3, 1)], width=7)
        try:
            running.append((steps, subject.answer(batch).logits.shape))
        except RunError as error:
            errors.append(error)
    if len(running) == 1:
        return running[0]
    if running:
        said = (
            f"--features {steps.features}" if steps.features else f"--vocabulary {steps.vocabulary}"
            for steps, _ in running
        )
        raise ConfigurationError(f"{text} runs with {' and with '.join(said)}: say which it is")
    if options.features is not None or options.vocabulary is not None:
        # The check itself finds out which sizes run, and says it better.
        return candidates[0], (0, options.classes or len(options.labels or ()) or 1)
    raise ConfigurationError(
        f"{text}: what one step is cannot be read off the module; say --features N or --vocabulary N"
        + (f" ({errors[0]})" if errors else "")
    )


def _likely_steps(module: nn.Module) -> Iterator[StepInput]:
    """What the module's layers take, in their order."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            yield StepInput(kind="tokens", vocabulary=part.num_embeddings)
        for name in ("in_features", "input_size", "in_channels", "num_features"):
            size = getattr(part, name, None)
            if isinstance(size, int) and size > 0:
                yield StepInput(features=size)
