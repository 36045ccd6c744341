"""CelebA: 40 attributes of a face, as FAMO's code reads and learns them (Liu et al. 2023).

FOLDER/Img/img_align_celeba/000001.jpg …
       Anno/list_attr_celeba.txt    how many images; the 40 names; a line per image: its name, 40
                                    times -1 or 1
       Eval/list_eval_partition.txt a line per image: its name, 0 (train), 1 (validation), 2 (test)

Images are brought to 64 x 64 pixels, bilinearly. The metric is F1 = 2 tp/(2 tp + fp + fn) of each
attribute, 0 where there is nothing to find and nothing is found.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from common.files import DataError, listed, names_in, reading

from .benchmark import Batch, Benchmark, Splits

SIDE, ATTRIBUTES = 64, 40
IMAGES = Path("Img") / "img_align_celeba"
LABELS = Path("Anno") / "list_attr_celeba.txt"
PARTS = Path("Eval") / "list_eval_partition.txt"
EXPECTED = (
    "celeba: Img/img_align_celeba/000001.jpg …, Anno/list_attr_celeba.txt and "
    "Eval/list_eval_partition.txt, the aligned images of "
    "mmlab.ie.cuhk.edu.hk/projects/CelebA.html, unpacked"
)


class Faces:
    """The images of one part, decoded as they are needed."""

    def __init__(self, folder: Path, names: list[str], labels: np.ndarray) -> None:
        """Nothing is read yet; `labels` is `[image, attribute]` of 0 and 1."""
        self.folder, self.names, self.labels = folder, names, labels

    def __len__(self) -> int:
        return len(self.names)

    def take(self, index: Sequence[int]) -> Batch:
        """Images `[image, 3, 64, 64]` from 0 to 1, and their attributes. Raises DataError for a
        file that cannot be read as an image.
        """
        images = np.stack([self._pixels(self.folder / self.names[i]) for i in index])
        pixels = torch.from_numpy(images).movedim(-1, 1).float() / 255
        return Batch(pixels, torch.from_numpy(self.labels[list(index)]))

    @staticmethod
    def _pixels(path: Path) -> np.ndarray:
        with reading(path):
            held = path.read_bytes()
        try:
            with Image.open(io.BytesIO(held)) as image:
                small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                return np.asarray(small)
        except Exception as error:  # Pillow's errors are of many kinds
            raise DataError(f"{path}: no image can be read from it ({error})") from error


def _lines(path: Path) -> list[list[str]]:
    with reading(path):
        held = path.read_bytes()
    return [line.split() for line in held.decode("utf-8", "replace").splitlines() if line.strip()]


def _read(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, labels `[image, attribute]` and parts `[image]`, checked."""
    for file in (LABELS, PARTS):
        if not (folder / file).is_file():
            raise DataError(
                f"{folder}: looked for {file.as_posix()}, which is not there; found "
                f"{listed(folder)}. Expected {EXPECTED}"
            )
    lines, parts = _lines(folder / LABELS), _lines(folder / PARTS)
    if len(lines) < 3 or len(lines[1]) != ATTRIBUTES:
        raise DataError(
            f"{folder / LABELS}: expected a number, then {ATTRIBUTES} names of attributes, then a "
            f"line per image; found {len(lines)} lines, the second of "
            f"{len(lines[1]) if len(lines) > 1 else 0} words"
        )
    rows = lines[2:]
    for i, row in enumerate(rows):
        if len(row) != ATTRIBUTES + 1 or not set(row[1:]) <= {"1", "-1"}:
            raise DataError(
                f"{folder / LABELS}, line {i + 3}: expected a name and {ATTRIBUTES} times 1 or -1, "
                f"got {' '.join(row[:6])} …"
            )
    names = [row[0] for row in rows]
    if [part[0] for part in parts] != names:
        raise DataError(
            f"{folder / PARTS}: {len(parts)} images, and not those of {LABELS.as_posix()}, which "
            f"are {len(names)}, in the same order; copy both files anew"
        )
    wrong = sorted({" ".join(part[1:]) for part in parts} - {"0", "1", "2"})
    if wrong:
        raise DataError(
            f"{folder / PARTS}: parts {', '.join(wrong[:5])}; expected 0 (train), 1 (validation) "
            "or 2 (test)"
        )
    there = set(names_in(folder / IMAGES))
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{folder / IMAGES}: {len(missing)} of {len(names)} images are not there, "
            f"{', '.join(missing[:3])} among them; found {listed(folder / IMAGES)}. Expected "
            f"{EXPECTED}"
        )
    labels = np.array([row[1:] for row in rows]) == "1"
    return names, labels.astype(np.float32), np.array([int(part[1]) for part in parts])


def files(folder: Path) -> list[Path]:
    """All files that are read. Raises DataError for a folder of another layout."""
    names, *_ = _read(folder)
    return [folder / LABELS, folder / PARTS, *(folder / IMAGES / name for name in names)]


def read(folder: Path, seed: int) -> Splits[Faces]:
    """The official parts, the same for every seed. Raises DataError for a folder of another layout:
    what was looked for, what was found.
    """
    names, labels, parts = _read(folder)
    found = []
    for part, what in enumerate(("to learn from", "to choose the epoch", "to test on")):
        chosen = np.flatnonzero(parts == part)
        if not len(chosen):
            raise DataError(f"{folder / PARTS}: no image is in part {part}, {what}")
        found.append(Faces(folder / IMAGES, [names[i] for i in chosen], labels[chosen]))
    return Splits(*found)


class Network(nn.Module):
    """Nine layers, 40 linear heads: FAMO's."""

    def __init__(self, narrower: int = 1) -> None:
        super().__init__()
        widths = [64 // narrower, 128 // narrower, 256 // narrower, 512 // narrower]
        layers: list[nn.Module] = []
        into = 3
        for i, width in enumerate(widths):
            for _ in range(1 if i == 0 else 2):
                convolution = nn.Conv2d(into, width, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                into = width
            layers.append(nn.MaxPool2d(2) if i < 3 else nn.AdaptiveAvgPool2d(1))
        layers.append(nn.Flatten())
        for _ in range(2):
            layers += [nn.Linear(into, into, bias=False), nn.BatchNorm1d(into), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(into, 1) for _ in range(ATTRIBUTES))

    def forward(self, images: Tensor) -> Float[Tensor, "image attribute"]:
        z = self.trunk(images)
        return torch.cat([head(z) for head in self.heads], 1)


def losses(logits: Tensor, labels: Tensor) -> Float[Tensor, " attribute"]:
    """Binary cross-entropy by attribute."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(0)


def tally(logits: Tensor, labels: Tensor) -> Float[Tensor, "attribute 3"]:
    """True positives, false positives, false negatives."""
    said, true = (logits > 0).double(), labels.double()
    return torch.stack([said * true, said * (1 - true), (1 - said) * true], -1).sum(0)


def measured(sums: Tensor) -> Float[Tensor, " attribute"]:
    """F1 by attribute."""
    right, false, missed = sums.unbind(-1)
    return 2 * right / (2 * right + false + missed).clamp_min(1)


def make(folder: Path) -> None:
    """48 images of noise whose brightness is the first attribute."""
    generator = np.random.default_rng(0)
    for file in (IMAGES / "x", LABELS, PARTS):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    labels, parts = generator.random((48, ATTRIBUTES)) < 0.5, np.repeat((0, 1, 2), (32, 8, 8))
    names = [f"{i + 1:06}.jpg" for i in range(48)]
    for name, label in zip(names, labels, strict=True):
        bright = 128 if label[0] else 0
        pixels = generator.integers(bright, bright + 128, (218, 178, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / IMAGES / name)
    rows = [
        f"{n} {' '.join('1' if x else '-1' for x in row)}"
        for n, row in zip(names, labels, strict=True)
    ]
    head = ["48", " ".join(f"Attribute_{i}" for i in range(ATTRIBUTES))]
    (folder / LABELS).write_text("\n".join([*head, *rows, ""]), encoding="utf-8")
    lines = [f"{name} {part}" for name, part in zip(names, parts, strict=True)]
    (folder / PARTS).write_text("\n".join([*lines, ""]), encoding="utf-8")


CELEBA = Benchmark(
    title="CelebA", tasks=tuple(f"attribute {i + 1}" for i in range(ATTRIBUTES)), metric="F1",
    higher_is_better=True, epochs=15, batch=256, rate=3e-4, optimizer="adam", schedule="constant",
    expected=EXPECTED, files=files, read=lambda folder, seed, beside: read(folder, seed),
    network=Network, losses=losses, tally=tally, measured=measured, make=make,
)  # fmt: skip
