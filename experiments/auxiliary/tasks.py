"""The main task and the auxiliary ones: what each makes of images, and its loss.

An auxiliary task needs no labels: it draws views of unlabelled images and is to say what was done
to them, or which of them belong together. Every task has a batch of its own and gives a scalar of
its own, so that its gradient costs one pass through its own images.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

import mtlfunc as mf

MAIN = "class"
MARGIN = 0.5  # of triplets, in squared distances of unit vectors

TEMPERATURE = 0.5
EMBEDDED = 32  # dimensions of what is compared with one another

ORDERS = tuple(itertools.permutations(range(4)))

Images = Float[Tensor, "image channel h w"]
Windows = Float[Tensor, "image channel tall wide"]
Quarters = Float[Tensor, "quarter image channel tall wide"]
Views = Float[Tensor, "view channel h w"]
Key = Int[Tensor, ""]


class Task(NamedTuple):
    """A head's outputs on views of a batch of images, and a loss of them."""

    head: str  # whose outputs it reads; tasks may share a head
    outputs: int
    views: Callable[[Images, Key], tuple[Views, Tensor]]  # and what is to be said of them
    loss: Callable[[Tensor, Tensor], Tensor]  # of outputs and that; a scalar


class Look(NamedTuple):
    """How images of a set may be changed without changing what they show."""

    reach: int  # pixels that a shift moves at most
    mirror: bool  # whether a mirror image shows the same


def standard(images: Images, key: Key, look: Look) -> Images:
    """Every image moved by up to `look.reach` pixels both ways, mirrored at random if it may be."""
    moves = _below(2 * look.reach + 1, mf.random.fold_in(key, 0), (2, len(images)))
    found = window(F.pad(images, (look.reach,) * 4), moves, (images.shape[-2], images.shape[-1]))
    if not look.mirror:
        return found
    turned = _below(2, mf.random.fold_in(key, 1), (len(images),))
    return _chosen(torch.stack([found, found.flip(-1)]), turned)


def window(images: Images, corner: Int[Tensor, "2 image"], size: tuple[int, int]) -> Windows:
    """From every image the window with this upper left corner (row, column)."""
    rows, columns = (corner[i][:, None] + torch.arange(size[i]).to(corner) for i in (0, 1))
    tall = images.gather(
        2, rows[:, None, :, None].expand(-1, images.shape[1], -1, images.shape[-1])
    )
    return tall.gather(3, columns[:, None, None, :].expand(-1, images.shape[1], size[0], -1))


def warped(images: Images, key: Key, look: Look) -> Images:
    """Every image turned by up to 23°, sheared, stretched and moved, bilinearly, 0 beyond the edge.
    Angles up to .4, shears up to .3, sides times 1 ± .2, moves up to `look.reach` pixels.
    """
    count, (h, w) = len(images), images.shape[-2:]
    drawn = 2 * mf.random.uniform(mf.random.fold_in(key, 0), (6, count)) - 1
    cos, sin = (0.4 * drawn[0]).cos(), (0.4 * drawn[0]).sin()
    wide, tall = 1 + 0.2 * drawn[1], 1 + 0.2 * drawn[2]
    across, down = (2 * look.reach / side * u for side, u in ((w, drawn[4]), (h, drawn[5])))
    if look.mirror:
        wide = wide * (2 * _below(2, mf.random.fold_in(key, 1), (count,)) - 1)
    matrix = torch.stack(
        [
            torch.stack([wide * cos, 0.3 * drawn[3] - sin, across], -1),
            torch.stack([wide * sin, tall * cos, down], -1),
        ],
        -2,
    )
    x, y = ((2 * torch.arange(side).to(images) + 1) / side - 1 for side in (w, h))
    places = torch.stack([x.expand(h, -1), y[:, None].expand(-1, w), images.new_ones(h, w)])
    grid = (matrix @ places.flatten(1)).mT.reshape(count, h, w, 2)
    return F.grid_sample(images, grid, align_corners=False)


def _below(n: int, key: Key, shape: tuple[int, ...]) -> Int[Tensor, "..."]:
    return (n * mf.random.uniform(key, shape)).long()


def _chosen(every: Float[Tensor, "way image *rest"], way: Int[Tensor, " image"]) -> Tensor:
    """Of every image the way that was drawn for it."""
    index = way.reshape(1, -1, *[1] * (every.ndim - 2)).expand(1, *every.shape[1:])
    return every.gather(0, index)[0]


def _turned(images: Images, key: Key) -> tuple[Views, Tensor]:
    turns = _below(4, key, (len(images),))
    return _chosen(torch.stack([images.rot90(k, (-2, -1)) for k in range(4)]), turns), turns


def _quarters(images: Images) -> Quarters:
    h, w = images.shape[-2] // 2, images.shape[-1] // 2
    upper, lower = images[..., :h, :], images[..., h:, :]
    return torch.stack([upper[..., :w], upper[..., w:], lower[..., :w], lower[..., w:]])


def _joined(parts: Quarters) -> Images:
    return torch.cat([torch.cat([parts[0], parts[1]], -1), torch.cat([parts[2], parts[3]], -1)], -2)


def _jigsaw(images: Images, key: Key) -> tuple[Views, Tensor]:
    """The quarters of an image in one of their 24 orders."""
    order = _below(len(ORDERS), key, (len(images),))
    parts = _quarters(images)
    taken = torch.tensor(ORDERS, device=images.device).index_select(0, order)
    return _joined(torch.stack([_chosen(parts, taken[:, i]) for i in range(4)])), order


def _hidden(images: Images, key: Key) -> tuple[Views, Tensor]:
    """One quarter set to 0, and that quarter."""
    place = _below(4, key, (len(images),))
    parts = _quarters(images)
    shown = torch.arange(4, device=images.device)[:, None] != place
    return _joined(parts * shown[..., None, None, None]), _chosen(parts, place).flatten(1)


def _noised(images: Images, key: Key) -> tuple[Views, Tensor]:
    """Noise of one length in one of three colours: white, its running means, its differences."""
    colour = _below(3, mf.random.fold_in(key, 0), (len(images),))
    white = mf.random.normal(mf.random.fold_in(key, 1), tuple(images.shape)).to(images)
    across, down, both = (white.roll(by, (-2, -1)) for by in ((0, 1), (1, 0), (1, 1)))
    red, blue = (white + across + down + both) / 2, (white - across - down + both) / 2
    return images + 0.6 * _chosen(torch.stack([white, red, blue]), colour), colour


def _triplets(outputs: Tensor, _: Tensor) -> Tensor:
    """Two views of one image nearer to one another than to a view of the next image."""
    one, other = F.normalize(outputs, dim=-1).chunk(2)
    near, far = ((one - x).square().sum(-1) for x in (other, other.roll(1, 0)))
    return F.relu(MARGIN + near - far).mean()


def _contrast(outputs: Tensor, _: Tensor) -> Tensor:
    """Which of all other views is the other one of the same image, in nats."""
    z = F.normalize(outputs, dim=-1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    likeness = (z @ z.mT / TEMPERATURE).masked_fill(itself, -torch.inf)
    return F.cross_entropy(likeness, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def _agreement(outputs: Tensor, _: Tensor) -> Tensor:
    """The second view is to be of the first one's class, which is sharpened and held."""
    first, second = outputs.chunk(2)
    held = (first.detach() / TEMPERATURE).softmax(-1)
    return -(held * second.log_softmax(-1)).sum(-1).mean()


AUXILIARIES = (
    *("rotation", "exemplar", "consistency", "crops", "contrast"),
    *("jigsaw", "place", "noise", "hidden"),
)
CHOSEN = AUXILIARIES[:3]
"""What runs unless others are given: the README says which were tried and what they did."""


def tasks(size: int, channels: int, look: Look, classes: int = 10) -> dict[str, Task]:
    """The main task and every auxiliary, by name. `size`: of the images, both ways, even.
    `channels`: of the images. `look`: how they may be changed. `classes`: of the main task. Returns
    `class`; `rotation` (by which of four quarter turns), `exemplar` and `crops` (triplets of warped
    and of shifted views), `contrast` (of warped views), `consistency` (the classes of a shifted and
    a warped view), `jigsaw` (in which order the quarters are), `place` (moved to which of nine),
    `noise` (of which colour) and `hidden` (the pixels of one quarter).
    """

    def moved(images: Images, key: Key) -> tuple[Views, Tensor]:
        return standard(images, key, look), images.new_zeros(())

    def two(
        first: Callable[..., Images], second: Callable[..., Images]
    ) -> Callable[[Images, Key], tuple[Views, Tensor]]:
        def views(images: Images, key: Key) -> tuple[Views, Tensor]:
            keys = [mf.random.fold_in(key, i) for i in (0, 1)]
            return torch.cat([first(images, keys[0], look), second(images, keys[1], look)]), (
                images.new_zeros(())
            )

        return views

    def placed(images: Images, key: Key) -> tuple[Views, Tensor]:
        place = _below(9, key, (len(images),))
        corner = look.reach * torch.stack([place // 3, place % 3])
        return window(F.pad(images, (look.reach,) * 4), corner, (size, size)), place

    def filled(outputs: Tensor, quarter: Tensor) -> Tensor:
        return (outputs - quarter).square().mean()

    entropy = F.cross_entropy
    return {
        MAIN: Task(MAIN, classes, moved, entropy),
        "rotation": Task("rotation", 4, _turned, entropy),
        "exemplar": Task("exemplar", EMBEDDED, two(warped, warped), _triplets),
        "consistency": Task(MAIN, classes, two(standard, warped), _agreement),
        "crops": Task("crops", EMBEDDED, two(standard, standard), _triplets),
        "contrast": Task("contrast", EMBEDDED, two(warped, warped), _contrast),
        "jigsaw": Task("jigsaw", len(ORDERS), _jigsaw, entropy),
        "place": Task("place", 9, placed, entropy),
        "noise": Task("noise", 3, _noised, entropy),
        "hidden": Task("hidden", channels * size**2 // 4, _hidden, filled),
    }
