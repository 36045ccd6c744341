"""All groups of a draw of tasks, trained and forecast in one program."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from common.grouping.data import questions
from common.grouping.forecasts import measured
from common.problems.digits import digits
from common.progress import Progress


class Program(NamedTuple):
    """What a store of finished runs keeps together: all groups on all seeds of a draw of tasks."""

    family: str
    draw: int
    first: int  # seed
    last: int
    steps: int

    @property
    def file(self) -> Path:
        return Path(
            self.family, f"draw {self.draw} seeds {self.first}-{self.last} steps {self.steps}.json"
        )


def drawn(program: Program, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Test losses of all groups, and what every forecaster says of them."""
    name = f"{program.family}, draw {program.draw}"
    source, keys = digits(torch.get_default_device()), torch.tensor(seeds)
    draw = torch.tensor(10_000 + program.draw)  # far from the seeds, which are keys as well
    data = vmap(lambda seed: questions(program.family, source, draw, seed))(keys)
    with Progress(program.steps, name, "steps") as progress:
        return measured(seeds, data, program.steps, progress.update)
