"""CIFAR-100 as 20 tasks of 5 classes: a superclass is a task, and an image belongs to one of them.

FOLDER/train, test, or FOLDER/cifar-100-python/…: pickled dictionaries with `data`, uint8 [image,
3072] (red, green, blue, each 32 x 32 by rows), `fine_labels` 0 … 99 and `coarse_labels` 0 … 19.

A batch holds as many images of every task. Nothing is augmented; pixels are standardised by the
training images' mean and deviation of each channel. A tenth of every task's training images, by the
seed, chooses the epoch. The metric is the accuracy among the five classes of the image's task.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

import mtlfunc as mf
from common.files import DataError, listed, names_in
from experiments.auxiliary.data import arrays

from .benchmark import Batch, Benchmark, Splits

TASKS, CLASSES = 20, 5
NAMES = ("train", "test")
INNER = "cifar-100-python"
EXPECTED = (
    "cifar100: train and test, or cifar-100-python with them, of cifar-100-python.tar.gz "
    "(www.cs.toronto.edu/~kriz/cifar.html; torchvision also downloads it), unpacked"
)


class Targets(NamedTuple):
    """Of every image."""

    task: Tensor  # 0 … 19
    label: Tensor  # 0 … 4, among the classes of the task


class Images:
    """As many images of every task, `[task, image, 3, 32, 32]` of uint8."""

    def __init__(self, pixels: Tensor, labels: Tensor, mean: Tensor, deviation: Tensor) -> None:
        """`mean` and `deviation` are those of each channel."""
        self.pixels, self.labels, self.mean, self.deviation = pixels, labels, mean, deviation

    def __len__(self) -> int:
        return self.labels.shape[1]

    def take(self, index: Sequence[int]) -> Batch:
        """The images with these numbers of every task, task after task."""
        chosen = torch.as_tensor(list(index))
        pixels = self.pixels[:, chosen].flatten(0, 1).float()
        task = torch.arange(TASKS).repeat_interleave(len(chosen))
        scaled = (pixels - self.mean[:, None, None]) / self.deviation[:, None, None]
        return Batch(scaled, Targets(task, self.labels[:, chosen].flatten()))


def _place(folder: Path) -> Path:
    for place in (folder, folder / INNER):
        found = names_in(place)
        missing = [name for name in NAMES if name not in found]
        if not missing:
            return place
    raise DataError(
        f"{folder}: looked for {' and '.join(NAMES)} there and in {INNER}, found {listed(folder)}. "
        f"Expected {EXPECTED}"
    )


def files(folder: Path) -> list[Path]:
    """Both files. Raises DataError for a folder of another layout."""
    place = _place(folder)
    return [place / name for name in NAMES]


def _by_task(path: Path, classes: list[list[int]] | None) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Images and labels `[task, image, …]`, and the fine classes of every task."""
    counts = {"fine_labels": TASKS * CLASSES, "coarse_labels": TASKS}
    images, fine, coarse = arrays(path, counts, "labels", "CIFAR-10")
    own = [sorted({int(x) for x in fine[coarse == task]}) for task in range(TASKS)]
    for task, found in enumerate(own):
        if len(found) != CLASSES or (classes is not None and found != classes[task]):
            said = classes[task] if classes is not None else f"{CLASSES} of them"
            raise DataError(
                f"{path}: images of coarse class {task} have the fine classes {found}; expected "
                f"{said}"
            )
    counts = np.bincount(coarse, minlength=TASKS)
    if counts.min() != counts.max():
        raise DataError(
            f"{path}: from {counts.min()} to {counts.max()} images of a coarse class; expected as "
            "many of each"
        )
    order = np.argsort(coarse, kind="stable").reshape(TASKS, -1)
    labels = np.stack([np.searchsorted(own[task], fine[order[task]]) for task in range(TASKS)])
    return images[torch.from_numpy(order)], torch.from_numpy(labels), own


def read(folder: Path, seed: int) -> Splits[Images]:
    """Training images divided by the seed, and the test images. Raises DataError for a folder of
    another layout, or a file that holds something else.
    """
    first, last = files(folder)
    pixels, labels, classes = _by_task(first, None)
    tested, truth, _ = _by_task(last, classes)
    count = labels.shape[1]
    if count < 2:
        raise DataError(f"{first}: {count} images per coarse class; expected at least 2")
    key = mf.random.key(seed)
    order = torch.stack(
        [mf.random.permutation(mf.random.fold_in(key, task), count) for task in range(TASKS)]
    )
    rows, held = torch.arange(TASKS)[:, None], max(1, count // 10)
    channels = pixels.flatten(0, 1).double().movedim(1, 0).flatten(1)
    scales = channels.mean(1).float(), channels.std(1).float().clamp_min(1)
    learnt, kept = (
        Images(pixels[rows, part], labels[rows, part], *scales)
        for part in (order[:, held:], order[:, :held])
    )
    return Splits(learnt, kept, Images(tested, truth, *scales))


class Network(nn.Module):
    """VGG-16's convolutions with batch norm, a linear head per task."""

    def __init__(self, narrower: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        into = 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                convolution = nn.Conv2d(into, width // narrower, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(width // narrower), nn.ReLU()]
                into = width // narrower
            layers.append(nn.MaxPool2d(2))
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleList(nn.Linear(into, CLASSES) for _ in range(TASKS))

    def forward(self, images: Tensor) -> Float[Tensor, "image task class"]:
        z = self.trunk(images)
        return torch.stack([head(z) for head in self.heads], 1)


def _own(logits: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Of every image the logits of its task, and which task that is, one-hot."""
    task = targets.task.to(logits.device)
    return logits[torch.arange(len(task), device=task.device), task], torch.eye(TASKS).to(logits)[
        task
    ]


def losses(logits: Tensor, targets: Targets) -> Float[Tensor, " task"]:
    """Cross-entropy over the images of each task; 0 for a task without any."""
    own, tasks = _own(logits, targets)
    each = torch.nn.functional.cross_entropy(own, targets.label, reduction="none")
    return each @ tasks / tasks.sum(0).clamp_min(1)


def tally(logits: Tensor, targets: Targets) -> Float[Tensor, "task 2"]:
    """Right answers, answers."""
    own, tasks = _own(logits, targets)
    right = (own.argmax(-1) == targets.label).double()
    return torch.stack([right @ tasks.double(), tasks.double().sum(0)], -1)


def only(batch: Batch, task: int) -> Batch:
    """The images of one task."""
    mine = batch.targets.task == task
    return Batch(batch.inputs[mine], Targets(*(leaf[mine] for leaf in batch.targets)))


def make(folder: Path) -> None:
    """Noise: 20 training and 10 test images of every superclass."""
    generator = np.random.default_rng(0)
    (folder / INNER).mkdir(parents=True, exist_ok=True)
    for name, count in zip(NAMES, (4, 2), strict=True):
        fine = generator.permutation(np.repeat(np.arange(TASKS * CLASSES), count))
        held = {
            b"data": generator.integers(0, 256, (len(fine), 3 * 32 * 32), dtype=np.uint8),
            b"fine_labels": fine.tolist(),
            b"coarse_labels": (fine % TASKS).tolist(),
        }
        (folder / INNER / name).write_bytes(pickle.dumps(held, protocol=2))


CIFAR100 = Benchmark(
    title="CIFAR-100", tasks=tuple(f"superclass {i + 1}" for i in range(TASKS)), metric="accuracy",
    higher_is_better=True, epochs=200, batch=8, rate=0.1, optimizer="sgd", schedule="cosine",
    expected=EXPECTED, files=files, read=lambda folder, seed, beside: read(folder, seed),
    network=Network, losses=losses, tally=tally, only=only, make=make,
)  # fmt: skip
