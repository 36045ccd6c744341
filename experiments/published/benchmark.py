"""What a data set has to say of itself, so that one loop trains on all of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from jaxtyping import Float
from torch import Tensor, nn


class Batch(NamedTuple):
    """Some samples."""

    inputs: Any  # what the network takes: a tensor, or a named tuple of tensors
    targets: Any  # what `losses` and `tally` read


class Split(Protocol):
    """Samples that are read as they are needed."""

    def __len__(self) -> int: ...

    def take(self, index: Sequence[int]) -> Batch:
        """A batch."""
        ...


Part = TypeVar("Part", bound=Split)


class Splits(NamedTuple, Generic[Part]):
    """Test samples choose nothing: validation samples choose the epoch that is tested."""

    train: Part
    validation: Part
    test: Part


class Benchmark(NamedTuple):
    """A data set, its network, and the published schedule."""

    title: str
    tasks: tuple[str, ...]
    metric: str
    higher_is_better: bool
    epochs: int
    batch: int
    rate: float
    optimizer: str  # "adam", or "sgd" with momentum .9
    schedule: str  # "constant", "cosine" to 0, or "plateau" of the validation score
    expected: str  # the folder's layout, and where it comes from, for the help
    files: Callable[[Path], list[Path]]  # all that is read
    # of a folder, a seed, and the folder of the results
    read: Callable[[Path, int, Path], Splits[Any]]
    network: Callable[[int], nn.Module]  # whose widths are divided by a number; `trunk`, `heads`
    losses: Callable[[Any, Any], Float[Tensor, " task"]]  # of outputs and targets
    tally: Callable[[Any, Any], Float[Tensor, "task sum"]]  # sums that the metric is made of
    make: Callable[[Path], None]  # writes a small folder of this layout, of made-up samples
    # the metric by task
    measured: Callable[[Float[Tensor, "task sum"]], Float[Tensor, " task"]] = lambda sums: (
        sums[:, 0] / sums[:, 1].clamp_min(1)
    )
    # of the metrics of all tasks, higher is better
    score: Callable[[list[float]], float] = lambda values: sum(values) / len(values)
    # what a network sees that learns one task alone
    only: Callable[[Batch, int], Batch] = lambda batch, task: batch
    base: tuple[float, ...] = ()  # published metrics of networks that learn one task alone
    # in what a folder's files are not the known ones; "" where they are, or none are known
    checked: Callable[[Path], str] = lambda folder: ""
