"""NYUv2 and CityScapes in the layout of the papers' code, and their augmentation.

FOLDER/train/image/0.npy …   [height, width, 3], 0 to 1
       train/label/0.npy …   [height, width], -1 to 12 (NYUv2); label_7 or label, -1 to 6
       train/depth/0.npy …   [height, width, 1] or [height, width], 0 where unknown
       train/normal/0.npy …  [height, width, 3]; NYUv2 alone
       val/…                 as train: the test images of the papers
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.files import DataError, listed, reading
from common.progress import counted

from .metrics import DEPTH, NORMAL, SEGMENT
from .render import Views

SCALES = (1.0, 1.2, 1.5)
HELD_OUT = 10  # of the training images every tenth chooses learning rates, where rates are chosen


class Benchmark(NamedTuple):
    """A set of images and what the papers do with it."""

    name: str
    tasks: tuple[str, ...]
    classes: int
    size: tuple[int, int]
    counts: tuple[int, int]  # training and test images
    batch: int
    labels: tuple[str, ...]  # folders that may hold the labels, the first found is read
    augmented: bool


NYUV2 = Benchmark(
    "NYUv2", (SEGMENT, DEPTH, NORMAL), 13, (288, 384), (795, 654), 2, ("label",), True
)
CITYSCAPES = Benchmark(
    "CityScapes", (SEGMENT, DEPTH), 7, (128, 256), (2975, 500), 8, ("label_7", "label"), True
)


class Held(NamedTuple):
    """A split in memory."""

    views: Views

    def __len__(self) -> int:
        return len(self.views.image)

    def take(self, index: Sequence[int]) -> Views:
        chosen = torch.as_tensor(list(index), device=self.views.image.device)
        return Views(*(leaf.index_select(0, chosen) for leaf in self.views))


class Folder:
    """One of the two folders of a benchmark, checked file by file as it is read."""

    def __init__(self, root: Path, benchmark: Benchmark, size: tuple[int, int] | None = None):
        """Looks which files there are. `root`: `FOLDER/train` or `FOLDER/val`. `benchmark`: whose
        layout it has. `size`: height and width that the images must have; None takes the first
        one's. Raises DataError for another layout: which files were looked for, which found.
        """
        self.root, self.benchmark = root, benchmark
        self.kinds = {"image": "image", "label": _labels(root, benchmark), "depth": "depth"}
        if NORMAL in benchmark.tasks:
            self.kinds["normal"] = "normal"
        self.numbers = _numbers(root, list(self.kinds.values()))
        first = np.asarray(self._read("image", self.numbers[0]))
        self.size: tuple[int, int] = size or (first.shape[0], first.shape[1])
        if self.size[0] % 32 or self.size[1] % 32:
            raise DataError(
                f"{self._file('image', self.numbers[0])}: {self.size[0]} x {self.size[1]} pixels; "
                "the networks halve five times, so both sides must be multiples of 32 "
                f"({benchmark.name}: {benchmark.size[0]} x {benchmark.size[1]})"
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, index: Sequence[int]) -> Views:
        """A batch. Raises DataError for a file of another size, a label outside the classes, a
        number that is not finite, a depth below 0: the file, what it holds and what was expected.
        """
        views = [self._view(self.numbers[i]) for i in index]
        return Views(*(torch.stack(leaves) for leaves in zip(*views, strict=True)))

    def _view(self, number: int) -> Views:
        arrays = {kind: self._checked(kind, number) for kind in self.kinds}
        label = arrays["label"]
        wrong = (label != np.round(label)) | (label < -1) | (label >= self.benchmark.classes)
        if wrong.any():
            found = sorted({float(x) for x in label[wrong].flat})[:5]
            raise DataError(
                f"{self._file('label', number)}: labels {', '.join(f'{x:g}' for x in found)} "
                f"outside the classes; expected whole numbers from -1 (unknown) to "
                f"{self.benchmark.classes - 1}"
            )

        def channels_first(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, np.float32)).movedim(-1, 0)

        depth = channels_first(arrays["depth"].reshape(*self.size, 1))
        normal = (
            channels_first(arrays["normal"])
            if "normal" in arrays
            else depth.new_zeros(3, *self.size)
        )
        return Views(
            channels_first(arrays["image"]), torch.from_numpy(label.astype(np.int64)), depth, normal
        )

    def files(self) -> list[Path]:
        """All that is read."""
        return [self._file(kind, number) for kind in self.kinds for number in self.numbers]

    def _checked(self, kind: str, number: int) -> np.ndarray:
        array = self._read(kind, number)
        shapes = {"label": [self.size], "depth": [(*self.size, 1), self.size]}.get(
            kind, [(*self.size, 3)]
        )
        if array.shape not in shapes:
            raise DataError(
                f"{self._file(kind, number)}: shape {array.shape}; expected "
                f"{' or '.join(map(str, shapes))}, as of the first image of {self.root.parent}"
            )
        if array.dtype.kind not in "fiub":
            raise DataError(f"{self._file(kind, number)}: holds {array.dtype}; expected numbers")
        if not np.isfinite(array).all():
            raise DataError(f"{self._file(kind, number)}: holds numbers that are not finite")
        if kind == "depth" and (array < 0).any():
            raise DataError(
                f"{self._file(kind, number)}: holds depths below 0, {array.min():g} say; expected "
                "more than 0, or 0 where the depth is not known"
            )
        if kind == "image" and not -0.5 <= array.min() <= array.max() <= 1.5:
            raise DataError(
                f"{self._file(kind, number)}: pixels from {array.min():g} to {array.max():g}; "
                "expected 0 to 1 (of bytes: divide by 255)"
            )
        if kind == "normal":
            longest = float(np.linalg.norm(array.astype(np.float64), axis=-1).max())
            if longest > 1.5 or 0 < longest < 0.5:
                raise DataError(
                    f"{self._file(kind, number)}: normals up to {longest:g} long; expected length "
                    "1, or 0 where the normal is not known"
                )
        return array

    def _read(self, kind: str, number: int) -> np.ndarray:
        file = self._file(kind, number)
        try:
            with reading(file), file.open("rb") as opened:
                found = np.load(opened)
        except DataError:
            raise
        except Exception as error:  # of broken files: zipfile's and tokenize's errors, too
            raise DataError(f"{file}: no array can be read from it ({error})") from error
        if not isinstance(found, np.ndarray):
            raise DataError(
                f"{file}: holds an .npz archive of {', '.join(found.files) or 'nothing'}; expected "
                "one array, as np.save writes it"
            )
        return found

    def _file(self, kind: str, number: int) -> Path:
        return self.root / self.kinds[kind] / f"{number}.npy"


class Part(NamedTuple):
    """Some images of a folder."""

    whole: Folder
    chosen: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, index: Sequence[int]) -> Views:
        return self.whole.take([self.chosen[i] for i in index])


Split = Held | Folder | Part  # images that are read as they are needed


def find(folder: Path) -> Benchmark:
    """Which benchmark a folder holds: with normals it is NYUv2, without them CityScapes. Raises
    DataError where neither layout is there.
    """
    for benchmark in (NYUV2, CITYSCAPES):
        last = "normal" if NORMAL in benchmark.tasks else "depth"
        if (folder / "train" / last).is_dir():
            return benchmark
    raise DataError(
        f"{folder}: neither NYUv2 nor CityScapes; looked for train/normal or train/depth, found "
        f"{listed(folder)}; in train: {listed(folder / 'train')}. Expected: "
        "{train,val}/{image,label,depth,normal}/0.npy … (NYUv2), "
        "{train,val}/{image,label_7 or label,depth}/0.npy … (CityScapes)"
    )


def read(folder: Path, benchmark: Benchmark) -> tuple[Folder, Folder]:
    """The training and the test images (the folder `val`). Raises DataError as `Folder` does."""
    train = Folder(folder / "train", benchmark)
    if len(train) < 3:
        raise DataError(
            f"{train.root}: {len(train)} images; expected at least 3, one of them held out"
        )
    test = Folder(folder / "val", benchmark, train.size)
    names = [split.kinds["label"] for split in (train, test)]
    if names[0] != names[1]:
        raise DataError(
            f"{folder}: labels are in train/{names[0]} and in val/{names[1]}, which may count "
            f"other classes; expected one name for both, {names[0]} or {names[1]}"
        )
    return train, test


def files(folder: Path) -> list[Path]:
    """All files that are read. Raises DataError as `find` and `read` do."""
    return [file for split in read(folder, find(folder)) for file in split.files()]


def check(folder: Path) -> tuple[int, int]:
    """Read every image once, so that no run of days ends at a broken one; height and width. Raises
    DataError: as `find`, `read` and `Folder.take` do.
    """
    splits = read(folder, find(folder))
    images = [(split, i) for split in splits for i in range(len(split))]
    for split, i in counted(images, "checking the data", "images"):
        split.take([i])
    return splits[0].size


def _labels(root: Path, benchmark: Benchmark) -> str:
    for name in benchmark.labels:
        if (root / name).is_dir():
            return name
    raise DataError(
        f"{root}: looked for the folder {' or '.join(benchmark.labels)}, found {listed(root)}"
    )


def _numbers(root: Path, kinds: Sequence[str]) -> list[int]:
    """The numbers for which every kind has a file."""
    found: dict[str, set[int]] = {}
    for kind in kinds:
        files = (root / kind).glob("*.npy") if (root / kind).is_dir() else ()
        stems = {file.stem for file in files if file.stem.isdecimal()}
        padded = sorted(stem for stem in stems if stem != str(int(stem)))
        if padded:
            raise DataError(
                f"{root / kind / padded[0]}.npy: expected {int(padded[0])}.npy, a number without "
                "zeros in front; rename the files"
            )
        found[kind] = {int(stem) for stem in stems}
    every = set().union(*found.values())
    missing = [f"{kind}/{n}.npy" for kind in kinds for n in sorted(every - found[kind])]
    if missing or not every:
        looked = ", ".join(missing[:5]) if every else ", ".join(f"{kind}/0.npy" for kind in kinds)
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        counts = ", ".join(f"{len(numbers)} in {kind}" for kind, numbers in found.items())
        raise DataError(
            f"{root}: looked for {looked}{more}, not found; found files: {counts}; the "
            f"folder holds {listed(root)}"
        )
    return sorted(every)


def augment(views: Views, generator: torch.Generator) -> Views:
    """The papers' random crop and flip, image by image. A scale s of 1, 1.2 and 1.5, a crop of 1/s
    of both sides anywhere, brought back to full size: images and normals bilinearly, labels and
    depths by the nearest pixel; depths divided by s, as what is magnified seems nearer. Then a
    mirror image for every second, with the normals' x negated. `views`: a batch. `generator`: of
    the draws, on the CPU.
    """
    parts = []
    for i in range(len(views.image)):
        one = Views(*(leaf[i : i + 1] for leaf in views))
        scale, down, right, mirror = torch.rand(4, generator=generator).tolist()
        one = crop(one, SCALES[int(scale * len(SCALES))], down, right)
        parts.append(flip(one) if mirror < 0.5 else one)
    return Views(*(torch.cat(leaves) for leaves in zip(*parts, strict=True)))


def crop(views: Views, scale: float, down: float, right: float) -> Views:
    """A window of 1/scale of both sides, its place given by shares of the room there is."""
    height, width = views.image.shape[-2:]
    tall, wide = int(height / scale), int(width / scale)
    top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))

    def resized(leaf: Tensor, mode: str) -> Tensor:
        window = leaf[..., top : top + tall, left : left + wide]
        corners = True if mode == "bilinear" else None
        return F.interpolate(window, size=(height, width), mode=mode, align_corners=corners)

    label = resized(views.label[:, None].to(views.image.dtype), "nearest")[:, 0]
    return Views(
        resized(views.image, "bilinear"), label.to(torch.int64),
        resized(views.depth, "nearest") / scale, resized(views.normal, "bilinear"),
    )  # fmt: skip


def flip(views: Views) -> Views:
    """The mirror image."""
    turned = Views(*(leaf.flip(-1) for leaf in views))
    sign = views.normal.new_tensor([-1.0, 1.0, 1.0])[:, None, None]
    return turned._replace(normal=turned.normal * sign)
