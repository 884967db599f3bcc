"""A torch module as a target: finds the kind of a step, from the options, or from its layers and from trial runs.

The *kind of a step* (`StepInput`) is a number of features, or the size of a vocabulary of token ids. Candidates are the
input sizes of the module's layers and the rows of its embedding tables; the module runs small batches of each. If none
runs, other ways to call the module are tried, so that the error can name the option that helps.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from lengthwise_export.checking.baseline import relative_difference
from lengthwise_export.checking.limits import run_error, runs, why_it_raises, widths_at_which_it_runs
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import ConfigurationError, RunError, UncheckableError
from lengthwise_export.layouts import PaddedBatch, pad
from lengthwise_export.onnx_graphs.beside import SequenceInput, StepInput, completed
from lengthwise_export.options import BESIDE_HINT, TargetOptions
from lengthwise_export.targets import beside_inputs
from lengthwise_export.tracing.call_signature import part_instead

_WIDTHS: Final = (7, 8, 64, 515)  # Widths to try; some models need an even number, or many samples
_FIRST: Final = ""  # stands for the name of the first sequence
_UNRELATED_ERRORS: Final = (AttributeError, ImportError, NameError, NotImplementedError)  # Raised for any kind of step
_ROWS: Final = 3  # of the batch that shows whether rows stay apart
_ROW_TRIAL_WIDTHS: Final = (11, 64, 515)  # its widths to try; convolutions without padding need many steps
_TOLERANCE: Final = 1e-4  # answers that differ by less are the same, in units of max(1, |logit|)

InferredSteps = tuple[TorchSubject, tuple[int, ...]]
"""A module with its kind of step and its signature, and the shape of its answer, rows first."""


def _running_subjects(subject: TorchSubject) -> Iterator[InferredSteps]:
    """Yields, for each of `_WIDTHS` at which the subject runs, the subject and the shape of its answer.

    If the classes of the answer come before the steps, it is a subject with a signature that says so.
    """
    sampler, signature = Sampler(subject.steps, seed=0), subject.signature
    for width in _WIDTHS:
        if width == subject.steps.features:  # a module that takes the axes in another order would run too
            width *= 2
        longest = max(width - 2, 1)
        batch = pad([sampler.sequence(length) for length in (longest, max(longest // 2, 1), 1)], width=width)
        with contextlib.suppress(RunError):
            shape = subject.answer(batch).logits.shape
            if signature.channels_first and len(shape) == 3 and shape[2] == width != shape[1]:
                yield replace(subject, signature=replace(signature, classes_first=True)), (shape[0], shape[2], shape[1])
            else:
                yield subject, shape


def read_steps(text: str, unread: TorchSubject, options: TargetOptions) -> InferredSteps:
    """Finds the kind of a step: the only candidate with which the module runs.

    Args:
        text: The name of the target in messages.
        unread: The module and how it is called; its `steps` are not known yet, and whatever they are is not used.
        options: The options of the target; `features` or `vocabulary` make the kind known.

    Returns:
        The module with its kind of step, and the shape of its answer. If the module runs at no usual width, this may be
        a candidate with which it does not run, for the check to report why (`_steps_for_check`).

    Raises:
        ConfigurationError: No kind of step runs, or several do; the message names the options that help.
    """
    likely = list(dict.fromkeys(_likely_steps(unread.module)))
    is_stated = options.features is not None or options.vocabulary is not None
    if options.features is not None:
        candidates = [StepInput(features=options.features)]
    elif options.vocabulary is not None:
        candidates = [StepInput(kind="tokens", vocabulary=options.vocabulary)]
    else:
        candidates = likely
    # An embedding table that gets the steps themselves decides.
    vocabularies = {} if is_stated and not unread.signature.sequences else _vocabularies(unread)

    def with_beside(steps: StepInput, **changes: Any) -> TorchSubject:
        """The module with this kind of step, and what stands beside its sequence; `changes` of its signature."""
        signature = replace(unread.signature, **changes)
        return beside_inputs.variant(replace(unread, steps=steps, signature=signature), likely, vocabularies, options)

    if _FIRST in vocabularies and not is_stated:
        of_tokens = with_beside(StepInput(kind="tokens", vocabulary=vocabularies[_FIRST]))
        if inferred := next(_running_subjects(of_tokens), None):
            return inferred
    subjects = [with_beside(steps) for steps in candidates]
    running = [inferred for subject in subjects if (inferred := next(_running_subjects(subject), None)) is not None]
    signature = unread.signature
    if not running and not signature.channels_first and (options.features or 1) == 1 and options.vocabulary is None:
        # Raw samples: one value for each step, without an axis of features.
        raw_samples = with_beside(StepInput(features=1), features_axis=False)
        running = list(itertools.islice(_running_subjects(raw_samples), 1))
    if len(running) > 1:
        choices = " and with ".join(_as_option(subject.steps) for subject, _ in running)
        raise ConfigurationError(f"{text} runs with {choices}: pass the right one")
    if not running and subjects and signature.statics:
        _refuse_statics(text, subjects)
    return running[0] if running else _steps_for_check(text, options, subjects)


def _refuse_statics(text: str, subjects: Sequence[TorchSubject]) -> None:
    """Raises the error for a module that runs with none of the forms of its static arguments that were tried.

    Raises:
        UncheckableError: Always.
    """
    error, names = _first_error(subjects), ", ".join(static.name for static in subjects[0].signature.statics)
    raise UncheckableError(
        f"{text} runs with nothing that was tried as {names}, taken for static values ({error}): pass --features N, "
        f"--static-names with a name for each value, or --channels-first or --time-first; {BESIDE_HINT}"
    )


def read_packed_steps(text: str, unread: TorchSubject, options: TargetOptions) -> InferredSteps:
    """Finds the kind of a step of a module that takes packed rows, and the form of these rows.

    The form is `[1, steps]` or `[steps]`: the first that runs. The layout of the subject that is returned says it, and
    whether the module answers each step or each sequence. Arguments and result are those of `read_steps`.

    Raises:
        UncheckableError: Neither form gives one answer for each sequence, or for each step.
    """
    errors: list[str] = []
    for has_rows_axis in (True, False):
        layout = replace(unread.layout, has_rows_axis=has_rows_axis, known_sizes=unread.sizes)
        try:
            subject, shape = read_steps(text, unread.with_layout(layout), options)
        except (ConfigurationError, UncheckableError) as error:
            errors.append(str(error))
            continue
        if (problem := _why_wrong_form(subject)) is None:
            return subject.with_layout(replace(subject.layout, per_step=len(shape) == 3)), shape
        errors.append(problem)
    raise UncheckableError(errors[0])


def _why_wrong_form(subject: TorchSubject) -> str | None:
    """What is wrong with the answer to a packed row, as a sentence; None if it is one for each sequence or step."""
    sampler, problem = Sampler(subject.steps, seed=0), "it raises for every packed row"
    for width in _WIDTHS[1:]:
        lengths = (width - 2, max(width // 2, 1), 1)
        batch = pad([sampler.sequence(length) for length in lengths], width=width)
        try:
            logits = subject.answer(batch).logits
        except RunError as error:
            problem = error.of_answer or f"the model raises for {batch.rows} sequences in a packed row: {error}"
            continue
        if logits.shape[:-1] in ((batch.rows,), (batch.rows, batch.width)):
            return None
        shape, _ = subject.output_form(batch)
        steps = subject.layout.width(batch.lengths, batch.width)
        return (
            f"the output is {list(shape)} for {batch.rows} sequences in a packed row of {steps} steps, but must be "
            "[sequences, classes] or [1, steps, classes]"
        )
    return problem


def _steps_for_check(text: str, options: TargetOptions, candidates: Sequence[TorchSubject]) -> InferredSteps:
    """For a module that runs at no usual width: the kind of step for which the check will report why, and a shape.

    That is the first candidate if the user states the kind; else the first one with which the module runs at all, such
    as with single rows or at a width of its own. The shape is `(0, classes)`, with the number of classes from the
    options, or 1.

    Raises:
        ConfigurationError: There is no candidate, the module runs with none, or it runs if it is called in another way.
        UncheckableError: The module runs, but its answer cannot be judged; it runs with another kind of step than the
            stated one; or there is such a candidate, but the target is to be mended, so no check would report why.
    """
    if not candidates:
        raise ConfigurationError(
            f"{text}: the kind of a step cannot be inferred from the module; pass --features N or --vocabulary N"
        )
    error, first = _first_error(candidates), candidates[0]
    _explain_by_other_calls(text, candidates, error)
    is_stated = options.features is not None or options.vocabulary is not None
    if is_stated:
        _require_no_other_steps(first)
    is_about_steps = not isinstance(error.__cause__, _UNRELATED_ERRORS)
    is_blind = first.signature.second == "none"
    for subject in candidates if is_about_steps or not is_blind else ():
        sampler = Sampler(subject.steps, seed=0)
        takes_one_row = any(runs(subject, pad([sampler.sequence(width)], width=width)) for width in _WIDTHS)
        if is_stated or takes_one_row or widths_at_which_it_runs(subject, sampler):
            if is_blind:
                raise UncheckableError(
                    why_it_raises(subject, [sampler.sequence(length) for length in (5, 3, 1)], 7, error)
                )
            return subject, (0, options.classes or len(options.labels or ()) or 1)
    options_shown = [_as_option(subject.steps) for subject in candidates[:4]]
    example = f"; with {options_shown[0]}" if len(options_shown) > 1 else ""
    hint = ". If a step is something else, pass --features N or --vocabulary N"
    if not is_about_steps:
        example, hint = "", part_instead(first.module) if isinstance(error.__cause__, NotImplementedError) else ""
    raise ConfigurationError(
        f"{text} raises for every batch that was tried ({', '.join(options_shown)}){example}: {error}{hint}"
    )


def _first_error(subjects: Sequence[TorchSubject]) -> RunError:
    """The error of the first subject for a small batch.

    Raises:
        UncheckableError: One of them runs, but its answer cannot be judged.
    """
    errors = []
    for subject in subjects:
        sampler = Sampler(subject.steps, seed=0)
        error = run_error(subject, pad([sampler.sequence(length) for length in (5, 3, 1)], width=7))
        if error is not None and error.of_answer is not None:
            raise UncheckableError(error.of_answer)
        errors.append(error or RunError("it runs at some widths only"))
    return errors[0]


def _require_no_other_steps(stated: TorchSubject) -> None:
    """Makes sure that a module which raises with the kind of step that the user states runs with no other.

    Raises:
        UncheckableError: It runs with another one; the message names both.
    """
    for steps in dict.fromkeys(_likely_steps(stated.module)):
        if any(_running_subjects(replace(stated, steps=steps))):
            raise UncheckableError(
                f"the model raises with {_as_option(stated.steps)}, and runs with {_as_option(steps)}: pass that"
            )


def _as_option(steps: StepInput) -> str:
    """The option for a kind of step, such as `--features 3`."""
    return f"--features {steps.features}" if steps.features else f"--vocabulary {steps.vocabulary}"


def _explain_by_other_calls(text: str, candidates: Sequence[TorchSubject], error: RunError) -> None:
    """Raises a better error than `error`, which a module raises at every kind of step, if one of two causes is found.

    If it is neither, the function returns, and the caller reports `error` itself.

    Raises:
        ConfigurationError: The weights are not float32, or the module runs if it is called in another way. The message
            says what to change.
    """
    weights = candidates[0].module.parameters()
    wrong_dtypes = {tensor.dtype for tensor in weights if tensor.is_floating_point()} - {torch.float32}
    if wrong_dtypes:
        dtypes = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in wrong_dtypes))
        raise ConfigurationError(
            f"{text} has weights of {dtypes}, but steps are float32: return module.float() from the factory ({error})"
        )
    for signature, sentence_end in candidates[0].signature.alternatives():
        for subject in candidates:
            if signature.channels_first and subject.steps.kind == "tokens":
                continue
            # At one width only, the width may have been mistaken for the features.
            if len(list(itertools.islice(_running_subjects(replace(subject, signature=signature)), 2))) == 2:
                raise ConfigurationError(
                    f"{text}, called with {_as_option(subject.steps)}, raises: {error}. It runs {sentence_end}"
                )


def _likely_steps(module: nn.Module) -> Iterator[StepInput]:
    """Yields the kinds of steps that the module's layers accept, in the order of the layers, with repeats."""
    for part in module.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            yield StepInput(kind="tokens", vocabulary=part.num_embeddings)
        for name in ("in_features", "input_size", "in_channels", "num_features"):
            size = getattr(part, name, None)
            if isinstance(size, int) and size > 0:
                yield StepInput(features=size)


def _vocabularies(unread: TorchSubject) -> dict[str, int]:
    """The sizes of the vocabularies: the rows of the embedding table that is indexed with the steps themselves.

    A smaller `vocab_size` in a configuration of the module counts before it.

    Returns:
        The size for each sequence, by its name, that of the first one under `_FIRST`. It is left out if no table gets
        its steps, or if several tables of different sizes do.
    """
    # 0 and 1 are valid ids in every table.
    ids = torch.randint(2, (3, 7), generator=torch.Generator().manual_seed(0)).numpy()
    names, step = unread.signature.sequences, StepInput(kind="tokens", vocabulary=2)
    sequences = tuple(SequenceInput(name=name, vocabulary=2) for name in names)
    subject = replace(unread, steps=step.model_copy(update={"sequences": sequences}))
    batch = completed(pad(list(ids), multiple=1), subject.steps)
    steps_of = {name: torch.tensor(batch.beside[name]) for name in names[1:]}
    steps_of[_FIRST] = torch.tensor(subject.layout.arrange(batch).steps)

    def are_steps(indices: Tensor, steps: Tensor) -> bool:
        """Whether the indices that a table gets are the steps, transposed or of one row too."""
        return any(torch.equal(indices, form) for form in (steps, steps.mT, steps[0]))

    sizes = beside_inputs.looked_up(subject, batch, steps_of, are_steps)
    # Hugging Face's configurations name the size of the vocabulary; the table may be larger.
    configured = [getattr(getattr(part, "config", None), "vocab_size", None) for part in unread.module.modules()]
    vocabularies = {name: min(of_tables) for name, of_tables in sizes.items() if len(of_tables) == 1}
    return {
        name: next((size for size in configured if isinstance(size, int) and 0 < size <= of_table), of_table)
        for name, of_table in vocabularies.items()
    }


def require_it_runs(text: str, subject: TorchSubject, options: TargetOptions) -> None:
    """Makes sure that a fitted module takes the width of the options, to which sequences are brought.

    Raises:
        ConfigurationError: It raises at this width.
    """
    error = run_error(subject, pad([Sampler(subject.steps, seed=0).sequence(options.width or 1)], multiple=1))
    if error is not None and error.of_answer is None:
        raise ConfigurationError(
            f"{text} raises for a sequence of --width {options.width} steps: {error}. If it was trained with another "
            "number of steps, pass that; and --channels-first, if it takes [rows, features, width]"
        )


def require_order_of_axes(text: str, subject: TorchSubject) -> None:
    """Makes sure that a module does not mix rows only because it takes its axes in another order.

    Raises:
        ConfigurationError: It mixes rows, and does not if it is called in another way; the message names the option.
    """
    if _has_separate_rows(subject):
        return
    for alternative in subject.alternatives():
        if _has_separate_rows(alternative.subject):
            raise ConfigurationError(
                f"{text}: the answer to a sequence depends on the other rows of its batch, or is not in its row. It "
                f"keeps to its row {alternative.sentence_end}"
            )


def _has_separate_rows(subject: Subject) -> bool:
    """Whether a module answers each row (or each of its steps) by itself: another first row changes no other answer.

    False if it runs at none of the widths, or its answer has another form. NaN is equal to NaN: answers that are not
    finite are the subject of a check, not of this trial.
    """
    sampler = Sampler(subject.steps, seed=0)
    for width in _ROW_TRIAL_WIDTHS:
        batch = pad([sampler.sequence(width) for _ in range(_ROWS)], width=width)
        changed = batch.steps.copy()
        changed[0] = sampler.sequence(width)
        try:
            logits = subject.answer(batch).logits
            changed_logits = subject.answer(PaddedBatch(changed, batch.lengths)).logits
        except RunError:
            continue
        if logits.shape[:-1] not in ((_ROWS,), (_ROWS, width)):
            return False
        return relative_difference(logits[1:], changed_logits[1:]) <= _TOLERANCE
    return False
