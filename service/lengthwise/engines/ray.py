"""Ray Data: `score` answers a dataset with actors, each of which has the model open (extra `ray`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lengthwise.scoring.scorer import Scorer

try:
    from ray.data import ActorPoolStrategy
except ImportError as missing:
    raise ImportError("Ray Data is not installed: pip install 'lengthwise[ray]'") from missing

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

BLOCK_ROWS: Final = 2048  # that an actor answers together by default, sorted and packed


class ScoringActor:
    """What an actor runs: a scorer whose model is opened when the actor starts, and not with the first rows."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        scorer.open()

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """Answers a batch."""
        return self._scorer(batch)


def score(
    dataset: Dataset,
    scorer: Scorer,
    *,
    workers: int | tuple[int, int],
    block_rows: int = BLOCK_ROWS,
    **options: Any,
) -> Dataset:
    """Answers the rows of a dataset with `Dataset.map_batches`, without the sequences and with `scorer.columns()`.

    If an actor dies, Ray starts another one and gives it the rows again that were not answered.

    Args:
        dataset: Its rows have the column `scorer.steps`.
        scorer: The model and its options. Each worker reads the model from the same path.
        workers: How many actors answer; of two numbers, at least and at most. Each takes `scorer.threads` CPUs of the
            cluster, so leave CPUs for the tasks that read.
        block_rows: Rows that are answered together: the more, the less padding.
        **options: Further options of `map_batches`, such as `num_gpus=1`.
    """
    fewest, most = (workers, workers) if isinstance(workers, int) else workers
    return dataset.map_batches(
        ScoringActor,
        fn_constructor_args=(scorer,),
        compute=ActorPoolStrategy(min_size=fewest, max_size=most),
        batch_size=block_rows,
        batch_format="pyarrow",
        **{"num_cpus": scorer.threads} | options,
    )
