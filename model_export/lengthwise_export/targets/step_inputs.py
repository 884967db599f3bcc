"""What one step of a torch module is: as said, or by what its layers take and what it runs with.

Where nothing runs, other ways to call the module are tried, so that the answer names the option that helps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from lengthwise.errors import ConfigurationError
from lengthwise.padding import pad
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.alternative_calls import alternative_calls
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.checking.uncheckable import runs, widths_at_which_it_runs
from lengthwise_export.errors import RunError
from lengthwise_export.options import TargetOptions
from lengthwise_export.tracing.call_signature import CallSignature
from lengthwise_export.tracing.outputs import OutputSelector

_WIDTHS: Final = (7, 8, 64, 515)
"""Widths to try: most models take the first; some want pairs of steps, or a stretch of raw samples."""
_NOT_ABOUT_STEPS: Final = (AttributeError, ImportError, NameError, NotImplementedError)
"""What a module raises for reasons of its own, whatever a step is."""


@dataclass(frozen=True, slots=True)
class InferredSteps:
    """What a step is, how the module is called with it, and the shape of an answer, rows first."""

    steps: StepInput
    signature: CallSignature
    shape: tuple[int, ...]


def read_steps(
    text: str, module: nn.Module, options: TargetOptions, signature: CallSignature, select_output: OutputSelector
) -> InferredSteps:
    """Finds out what one step is.

    Args:
        text: What the module is called, for people.
        module: The module.
        options: What the caller said.
        signature: How it is called, as far as its signature and the options tell.
        select_output: Picks the answer from what it returns.

    Raises:
        ConfigurationError: Nothing runs, or several readings do; says which options help.
    """
    if options.features is not None and options.vocabulary is not None:
        raise ConfigurationError("--features and --vocabulary: a step is either numbers or a token id, not both")
    said = options.features is not None or options.vocabulary is not None
    if options.features is not None:
        candidates = [StepInput(features=options.features)]
    elif options.vocabulary is not None:
        candidates = [StepInput(kind="tokens", vocabulary=options.vocabulary)]
    else:
        tokens = _vocabulary(module, signature, select_output)
        if tokens is not None and (
            found := _tried(module, StepInput(kind="tokens", vocabulary=tokens), signature, select_output)
        ):
            return found
        candidates = list(dict.fromkeys(_likely_steps(module)))
    running = [found for steps in candidates if (found := _tried(module, steps, signature, select_output)) is not None]
    if not running and not signature.channels_first and (options.features or 1) == 1 and options.vocabulary is None:
        # Raw samples: one number a step, without an axis of features.
        raw = _tried(module, StepInput(features=1), replace(signature, features_axis=False), select_output)
        running = [] if raw is None else [raw]
    if len(running) == 1:
        return running[0]
    if running:
        raise ConfigurationError(
            f"{text} runs with {' and with '.join(_as_option(found.steps) for found in running)}: say which it is"
        )
    if not candidates:
        raise ConfigurationError(
            f"{text}: what one step is cannot be read off the module; say --features N or --vocabulary N"
        )
    error = _error_of(module, candidates[0], signature, select_output)
    _refuse_other_callings(text, module, candidates, signature, select_output, error)
    for steps in candidates:
        subject = TorchSubject(module, steps, signature=signature, select_output=select_output)
        sampler = Sampler(steps, seed=0)
        takes_one_row = any(runs(subject, pad([sampler.sequence(width)], width=width)) for width in _WIDTHS)
        if said or takes_one_row or widths_at_which_it_runs(subject, sampler):
            # The check itself finds out which sizes run, and says it better.
            return InferredSteps(steps, signature, (0, options.classes or len(options.labels or ()) or 1))
    tried = candidates[:4]
    said_of = f"; with {_as_option(candidates[0])}" if len(tried) > 1 else ""
    hint = ". If a step is something else, say --features N or --vocabulary N"
    if isinstance(error.__cause__, _NOT_ABOUT_STEPS):
        said_of = hint = ""
    raise ConfigurationError(
        f"{text} raises for every batch that was tried ({', '.join(map(_as_option, tried))}){said_of}: {error}{hint}"
    )


def _as_option(steps: StepInput) -> str:
    return f"--features {steps.features}" if steps.features else f"--vocabulary {steps.vocabulary}"


def _tried(
    module: nn.Module, steps: StepInput, signature: CallSignature, select_output: OutputSelector
) -> InferredSteps | None:
    """A reading, where it runs at one of the usual widths."""
    return next(_each_tried(module, steps, signature, select_output), None)


def _runs_at_several_widths(
    module: nn.Module, steps: StepInput, signature: CallSignature, select_output: OutputSelector
) -> bool:
    """Whether a reading runs at two widths at least: at one alone, the width may have been taken for the features."""
    return len(list(itertools.islice(_each_tried(module, steps, signature, select_output), 2))) == 2


def _each_tried(
    module: nn.Module, steps: StepInput, signature: CallSignature, select_output: OutputSelector
) -> Iterator[InferredSteps]:
    subject, sampler = (
        TorchSubject(module, steps, signature=signature, select_output=select_output),
        Sampler(steps, seed=0),
    )
    for width in _WIDTHS:
        longest = max(width - 2, 1)
        batch = pad([sampler.sequence(length) for length in (longest, max(longest // 2, 1), 1)], width=width)
        try:
            shape = subject.answer(batch).logits.shape
        except RunError:
            continue
        if signature.channels_first and len(shape) == 3 and shape[2] == width != shape[1]:
            yield InferredSteps(steps, replace(signature, classes_first=True), (shape[0], shape[2], shape[1]))
        else:
            yield InferredSteps(steps, signature, shape)


def _error_of(module: nn.Module, steps: StepInput, signature: CallSignature, select_output: OutputSelector) -> RunError:
    """What the module says to a small batch of a reading that does not run."""
    sampler = Sampler(steps, seed=0)
    batch = pad([sampler.sequence(length) for length in (5, 3, 1)], width=7)
    try:
        TorchSubject(module, steps, signature=signature, select_output=select_output).answer(batch)
    except RunError as error:
        return error
    return RunError("it runs at some widths only")


def _refuse_other_callings(
    text: str,
    module: nn.Module,
    candidates: Sequence[StepInput],
    signature: CallSignature,
    select_output: OutputSelector,
    error: RunError,
) -> None:
    """Says which other way to call the module runs, where one does.

    Raises:
        ConfigurationError: One does.
    """
    wrong = {tensor.dtype for tensor in module.parameters()} - {torch.float32}
    if any(dtype.is_floating_point for dtype in wrong):
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in wrong))
        raise ConfigurationError(
            f"{text} has weights of {named}, and steps are float32: return module.float() from the factory ({error})"
        )
    for other in alternative_calls(signature):
        for steps in candidates:
            if other.signature.channels_first and steps.kind == "tokens":
                continue
            if _runs_at_several_widths(module, steps, other.signature, select_output):
                raise ConfigurationError(
                    f"{text}, called with {_as_option(steps)}, raises: {error}. It runs {other.runs}"
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


def _vocabulary(module: nn.Module, signature: CallSignature, select_output: OutputSelector) -> int | None:
    """How many token ids there are, where a table is looked up with the steps as they are given.

    Positions and kinds of tokens are looked up too, in tables of their own. Where the model's configuration names its
    `vocab_size`, as Hugging Face's do, the table may be larger than that, and never smaller.
    """
    # Ids of the two kinds that every table has.
    ids = torch.randint(2, (3, 7), generator=torch.Generator().manual_seed(0)).numpy()
    sizes: set[int] = set()

    def looked_up(table: nn.Embedding, given: tuple[Any, ...]) -> None:
        held = given[0] if given else None
        if isinstance(held, Tensor) and any(
            torch.equal(held, way) for way in (torch.tensor(ids), torch.tensor(ids).mT)
        ):
            sizes.add(table.num_embeddings)

    hooks = [part.register_forward_pre_hook(looked_up) for part in module.modules() if isinstance(part, nn.Embedding)]
    steps = StepInput(kind="tokens", vocabulary=2)
    try:
        TorchSubject(module, steps, signature=signature, select_output=select_output).answer(pad(list(ids), multiple=1))
    except RunError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if len(sizes) != 1:
        return None
    (size,) = sizes
    said = [getattr(getattr(part, "config", None), "vocab_size", None) for part in module.modules()]
    return next((one for one in said if isinstance(one, int) and 0 < one <= size), size)
