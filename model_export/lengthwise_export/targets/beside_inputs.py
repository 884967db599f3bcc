"""What stands beside the first sequence of a torch module, found by trial runs.

How many static values an argument holds, and in which form; which of them are categories, by the embedding tables that
they are looked up in; and what a step of each further sequence is.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lengthwise_export.checking.limits import run_error
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import RunError
from lengthwise_export.layouts import PaddedBatch, pad
from lengthwise_export.onnx_graphs.beside import STATIC, SequenceInput, StaticInput, StepInput, completed, static_input
from lengthwise_export.options import TargetOptions
from lengthwise_export.tracing.beside_arguments import StaticArgument

_ValueName = TypeVar("_ValueName")

_WIDTHS: Final = (8, 64, 515)  # to try; some models need many samples
_MOST_COUNTS: Final = 64  # an argument of up to so many static values is tried
_FEW_ARGUMENTS: Final = 2
_TOO_NARROW: Final = re.compile(r"[Kk]ernel size|[Oo]utput size")  # in what torch raises for too few steps
_MOST_FORMS: Final = 400  # so many forms of several arguments are tried
_ROWS: Final = 24  # of the batch that shows which static values are looked up in a table


def variant(
    subject: TorchSubject, likely: Sequence[StepInput], vocabularies: Mapping[str, int], options: TargetOptions
) -> TorchSubject:
    """The subject with what stands beside its first sequence: the first kind of that with which it runs.

    If it runs with none, the first kind that was tried, for the error. A subject that takes the steps of one sequence
    alone is returned as it is.

    Args:
        subject: The module, with the kind of a step of its first sequence.
        likely: The kinds of steps that its layers accept.
        vocabularies: The sizes of the vocabularies of sequences of token ids that are known, by the name of the
            sequence.
        options: The options of the target.
    """
    if not subject.signature.statics and not subject.signature.sequences:
        return subject
    tried = [*_with_sequences(subject, likely, vocabularies)]
    running = (found for one in tried if (found := _with_statics(one, options)) is not None)
    first = _with_forms(tried[0], subject.signature.statics) if subject.signature.statics else tried[0]
    return next(running, first)


def _with_sequences(
    subject: TorchSubject, likely: Sequence[StepInput], vocabularies: Mapping[str, int]
) -> Iterator[TorchSubject]:
    """Yields the subject with each combination of kinds of steps of its further sequences, those of the first first."""
    if not subject.signature.sequences:
        yield subject
        return
    first, *further = subject.signature.sequences
    kinds = [
        [StepInput(kind="tokens", vocabulary=vocabularies[name])] if name in vocabularies else [subject.steps, *likely]
        for name in further
    ]
    for combination in itertools.product(*map(dict.fromkeys, kinds)):
        sequences = tuple(
            SequenceInput(name=name, features=kind.features, vocabulary=kind.vocabulary)
            for name, kind in zip((first, *further), (subject.steps, *combination), strict=True)
        )
        yield replace(subject, steps=subject.steps.model_copy(update={"sequences": sequences}))


def _with_statics(subject: TorchSubject, options: TargetOptions) -> TorchSubject | None:
    """The subject with the forms of its static arguments with which it runs; None if it runs with none."""
    if not subject.signature.statics:
        return subject if _runs(subject) else None
    statics = _forms_that_run(subject, options)
    if statics is None:
        return None
    subject = _with_forms(subject, statics)
    sizes = _table_sizes(subject, sum(static.count for static in statics))
    static = static_input({static.name: static.count for static in statics}, sizes, options)
    return replace(subject, steps=subject.steps.model_copy(update={"static": static}))


def _forms_that_run(subject: TorchSubject, options: TargetOptions) -> tuple[StaticArgument, ...] | None:
    """The forms of the static arguments with which a module runs: the first that does; None if none does.

    A single argument of several values is tried with each count. If the module runs with all from some count on, it
    takes its values by their index: the smallest is taken. Otherwise a count that runs beside a larger one is only
    broadcast: the largest is taken.
    """
    statics = subject.signature.statics
    if len(statics) == 1:
        (static,) = statics
        counts = range(1, _MOST_COUNTS + 1) if options.static_names is None else [len(options.static_names)]
        running = [count for count in counts if _runs(_with_forms(subject, (replace(static, count=count),)))]
        if running:
            is_open = len(running) > 1 and running[-1] - running[0] == len(running) - 1
            return (replace(static, count=running[0] if is_open else running[-1]),)
    # Of several arguments, one may have as many values as some weight
    sizes = [size for size in sorted(subject.sizes) if 1 < size <= _MOST_COUNTS and len(statics) <= _FEW_ARGUMENTS]
    forms = [
        [
            static,
            replace(static, is_column=True),
            replace(static, is_column=True, is_code=True),
            replace(static, is_code=True),
            *(replace(static, count=size) for size in sizes),
        ]
        for static in statics
    ]
    combinations = itertools.islice(itertools.product(*forms), _MOST_FORMS)
    return next((combination for combination in combinations if _runs(_with_forms(subject, combination))), None)


def _with_forms(subject: TorchSubject, statics: tuple[StaticArgument, ...]) -> TorchSubject:
    """The subject with these forms of its static arguments; each value is 0, which a category may be, too."""
    count = sum(static.count for static in statics)
    static = StaticInput(count=count, categories={str(index): ("0",) for index in range(count)})
    signature = replace(subject.signature, statics=statics)
    return replace(subject, signature=signature, steps=subject.steps.model_copy(update={"static": static}))


def _runs(subject: TorchSubject) -> bool:
    """Whether a module runs for rows of different lengths: at the first of `_WIDTHS` that is not too narrow for it."""
    sampler = Sampler(subject.steps, seed=0)
    for width in _WIDTHS:
        batch = pad([sampler.sequence(length) for length in (width - 1, width // 2, 1)], width=width)
        error = run_error(subject, batch)
        if error is None or not _TOO_NARROW.search(error.detail):
            return error is None
    return False


def _table_sizes(subject: TorchSubject, count: int) -> list[int | None]:
    """For each static value, the number of rows of the embedding table that it is looked up in; None without one.

    The values are random bits in this run: so it is seen which of them a table gets.
    """
    sampler, bits = Sampler(subject.steps, seed=0), np.random.default_rng(0).integers(0, 2, (_ROWS, count))
    width = _WIDTHS[1]
    batch = completed(pad([sampler.sequence(width) for _ in range(_ROWS)], width=width), subject.steps)
    batch = replace(batch, beside={**batch.beside, STATIC: bits.astype(np.float32)})

    def has_column(indices: Tensor, column: Tensor) -> bool:
        """Whether the indices that a table gets are a static value, or have it as a column."""
        return indices.numel() % _ROWS == 0 and any(torch.equal(one, column) for one in indices.reshape(_ROWS, -1).T)

    sizes = looked_up(subject, batch, dict(enumerate(torch.tensor(bits).T)), has_column)
    return [min(sizes[index]) if index in sizes else None for index in range(count)]


def looked_up(
    subject: TorchSubject,
    batch: PaddedBatch,
    values: Mapping[_ValueName, Tensor],
    matches: Callable[[Tensor, Tensor], bool],
) -> dict[_ValueName, set[int]]:
    """The sizes of the embedding tables that get certain values as indices, in the run of a batch.

    Args:
        subject: The module.
        batch: The batch.
        values: What may be looked up, by any key.
        matches: Whether the indices that a table gets are those values.

    Returns:
        The sizes of the tables by the keys; those of which no table gets the values are left out.
    """
    sizes: dict[_ValueName, set[int]] = {}

    def note_table(table: nn.Embedding | nn.EmbeddingBag, arguments: tuple[Any, ...]) -> None:
        """A hook before a table runs: notes its size for what it gets."""
        for indices in (one for one in arguments[:1] if isinstance(one, Tensor)):
            for key in (key for key, value in values.items() if matches(indices, value)):
                sizes.setdefault(key, set()).add(table.num_embeddings)

    with contextlib.ExitStack() as undo, contextlib.suppress(RunError):
        for part in subject.module.modules():
            if isinstance(part, nn.Embedding | nn.EmbeddingBag):
                undo.callback(part.register_forward_pre_hook(note_table).remove)
        subject.answer(batch)
    return sizes
