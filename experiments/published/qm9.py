"""QM9: eleven properties of a molecule, as Nash-MTL's and FAMO's code learns them.

Every pair of atoms is an edge with five features. The first four, the kind of its bond, are zeros
here, since the files have no bonds; the last is its length. An atom's eleven are its kind, one of
five, its number, four zeros (aromatic, sp, sp2, sp3) and its bonded hydrogens, also 0 here.

The targets are scaled to mean 0 and deviation 1 of the training molecules. The metric is the mean
absolute error in the units of the published tables. 10,000 molecules test and 10,000 choose the
epoch, drawn by the seed; of fewer than 100,000 molecules a tenth each.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from common.problems import molecules
from common.problems.molecules import EXPECTED, NAMES, NUMBERS

from .benchmark import Batch, Benchmark, Splits

HELD_OUT = 10_000
ATOM, BOND = 11, 4
BASE = (0.0671, 0.1814, 60.576, 53.915, 0.5027, 4.539, 58.838, 64.244, 63.852, 66.223, 0.07212)
"""Of networks that learn one property alone, as Nash-MTL's and FAMO's code has them."""


class Seen(NamedTuple):
    """A batch, filled up to the largest molecule."""

    atoms: Tensor  # [molecule, atom, 11]
    pairs: Tensor  # [molecule, atom, atom, 5]: kind of bond, distance
    real: Tensor  # [molecule, atom]: 1.0 for an atom, 0.0 for what fills up


class Targets(NamedTuple):
    """Of every molecule."""

    scaled: Tensor  # [molecule, property], mean 0 and deviation 1
    units: Tensor  # [molecule, property]: of what 1 is in the metric's units, the same in all rows


class Held:
    """Some of the molecules that are in memory."""

    def __init__(self, every: molecules.Molecules, chosen: Tensor, mean: Tensor, std: Tensor):
        """`mean` and `std` of the training molecules, by property."""
        self.every, self.chosen, self.mean, self.std = every, chosen, mean, std

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, index: Sequence[int]) -> Batch:
        """Molecules as dense graphs, and their scaled properties."""
        numbers, places, wanted = (leaf[self.chosen[[*index]]] for leaf in self.every)
        real = (numbers > 0).float()
        most = int(real.sum(1).max())
        numbers, places, real = numbers[:, :most], places[:, :most], real[:, :most]
        atoms = torch.zeros(*real.shape, ATOM)
        kinds = torch.tensor([*NUMBERS.values()])
        atoms[..., : len(kinds)] = (numbers[..., None] == kinds).float()
        atoms[..., len(kinds)] = numbers.float()
        pairs = torch.zeros(*real.shape, most, BOND + 1)
        apart = (places[:, :, None] - places[:, None]).norm(dim=-1)
        pairs[..., BOND] = apart * real[:, :, None] * real[:, None]
        scaled = ((wanted - self.mean) / self.std).float()
        return Batch(Seen(atoms, pairs, real), Targets(scaled, self.std.expand(len(scaled), -1)))


def read(folder: Path, seed: int, beside: Path) -> Splits[Held]:
    """Molecules divided by the seed; what was read of the text is kept in the folder `beside`.
    Raises DataError for a folder of another layout, or a file that holds something else.
    """
    every = molecules.read(folder, beside)
    held = min(HELD_OUT, len(every.numbers) // 10)
    counts = len(every.numbers) - 2 * held, held, held
    order, mean, std = molecules.divided(every, counts, seed)
    return Splits(*(Held(every, part, mean, std) for part in order.split(counts)))


class Network(nn.Module):
    """Three rounds of messages (NNConv, its mean over all other atoms, and a GRU), then Set2Set. As
    PyTorch Geometric's example has it, on dense graphs. The matrix of a message is linear in the
    edge's hidden features, so it is applied to every atom before messages are summed, rather than
    made for every edge.
    """

    def __init__(self, narrower: int = 1) -> None:
        super().__init__()
        width, hidden = 64 // narrower, 128 // narrower
        self.width = width
        self.trunk = nn.ModuleDict(
            {
                "first": nn.Linear(ATOM, width),
                "edge": nn.Linear(BOND + 1, hidden),
                "matrix": nn.Linear(hidden, width * width),
                "own": nn.Linear(width, width),
                "round": nn.GRUCell(width, width),
                "reading": nn.LSTMCell(2 * width, width),
                "last": nn.Linear(2 * width, width),
            }
        )
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in NAMES)

    def forward(self, seen: Seen) -> Float[Tensor, "molecule property"]:
        trunk, (count, most), width = self.trunk, seen.real.shape, self.width
        matrix = trunk["matrix"]
        assert isinstance(matrix, nn.Linear)
        weight, bias = matrix.weight.view(width, width, -1), matrix.bias.view(width, width)
        others = seen.real[:, :, None] * seen.real[:, None] * (1 - torch.eye(most).to(seen.real))
        share = others / others.sum(-1, keepdim=True).clamp_min(1)
        edges = F.relu(trunk["edge"](seen.pairs)) * share[..., None]
        z = F.relu(trunk["first"](seen.atoms))
        for _ in range(3):
            applied = torch.einsum("bji,iok->bjko", z, weight)
            messages = torch.einsum("bijk,bjko->bio", edges, applied) + share @ z @ bias
            flat = F.relu(trunk["own"](z) + messages).flatten(0, 1)
            z = trunk["round"](flat, z.flatten(0, 1)).view(count, most, width)
        star, state = z.new_zeros(count, 2 * width), None
        for _ in range(3):
            state = trunk["reading"](star, state)
            asked = torch.einsum("bno,bo->bn", z, state[0])
            chosen = asked.masked_fill(seen.real == 0, -torch.inf).softmax(-1)
            star = torch.cat([state[0], torch.einsum("bn,bno->bo", chosen, z)], -1)
        representation = F.relu(trunk["last"](star))
        return torch.cat([head(representation) for head in self.heads], 1)


def losses(outputs: Tensor, targets: Targets) -> Float[Tensor, " property"]:
    """Mean squared errors of the scaled properties."""
    return (outputs - targets.scaled).square().mean(0)


def tally(outputs: Tensor, targets: Targets) -> Float[Tensor, "property 2"]:
    """Absolute errors in the metric's units, and molecules."""
    errors = ((outputs - targets.scaled).double().abs() * targets.units).sum(0)
    return torch.stack([errors, torch.full_like(errors, len(outputs))], -1)


def score(values: list[float]) -> float:
    """-Δm against the published base, as Nash-MTL and FAMO choose the epoch."""
    return -100 * sum(v / b - 1 for v, b in zip(values, BASE, strict=True)) / len(BASE)


def make(folder: Path, factor: float = 1) -> None:
    """60 molecules of C and H at random places; random properties, times a factor in the file."""
    draw = torch.Generator().manual_seed(0)
    properties = (factor * (torch.randn(60, len(NAMES), generator=draw) + 3)).tolist()
    places = [torch.randn(3 + i % 7, 3, generator=draw) for i in range(60)]
    kinds = [["C", "H"] * 5 for _ in places]
    rows = zip(kinds, places, properties, strict=True)
    molecules.write(folder, ((kind[: len(place)], place, of) for kind, place, of in rows))


QM9 = Benchmark(
    title="QM9", tasks=NAMES, metric="mean absolute error", higher_is_better=False, epochs=300,
    batch=120, rate=1e-3, optimizer="adam", schedule="plateau", expected=EXPECTED,
    files=molecules.files, read=read, network=Network, losses=losses, tally=tally, score=score,
    make=make, base=BASE, checked=molecules.checked,
)  # fmt: skip
