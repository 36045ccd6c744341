"""Few labels, many images: scikit-learn's digits, or CIFAR-10 from torchvision's files.

FOLDER/data_batch_1 … data_batch_5, test_batch, or FOLDER/cifar-10-batches-py/…: pickled
dictionaries with `data`, uint8 [image, 3072] (red, green, blue, each 32 x 32 by rows), and
`labels`, a list of 0 … 9.
"""

import functools
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from sklearn.datasets import load_digits
from torch import Tensor

import mtlfunc as mf
from common.files import DataError, Source, listed, names_in, reading

from .tasks import Look

CLASSES = 10
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
INNER = "cifar-10-batches-py"


class Benchmark(NamedTuple):
    """A set of images and what is done with it."""

    name: str
    size: int
    channels: int
    look: Look
    labels: tuple[int, ...]  # how many images have one, in each problem
    validation: int  # images that choose rates
    brightest: int


DIGITS = Benchmark("digits", 8, 1, Look(1, False), (50, 100, 200), 200, 16)
CIFAR10 = Benchmark("CIFAR-10", 32, 3, Look(4, True), (500, 1000, 2000), 5000, 255)
DIGITS_TESTED = 600


class Data(NamedTuple):
    """One division of the images; under vmap every leaf has the seed first."""

    labelled: UInt8[Tensor, "labelled channel h w"]
    labels: Int[Tensor, " labelled"]
    unlabelled: UInt8[Tensor, "unlabelled channel h w"]  # the labelled ones among them
    validation: UInt8[Tensor, "validation channel h w"]
    validation_labels: Int[Tensor, " validation"]
    test: UInt8[Tensor, "test channel h w"]
    test_labels: Int[Tensor, " test"]


def values(images: UInt8[Tensor, "*any"], benchmark: Benchmark) -> Float[Tensor, "*any"]:
    """Digits from 0 to 2, photographs from -1 to 1: what lies beyond an edge is 0."""
    scaled = images.to(torch.float32) * (2 / benchmark.brightest)
    return scaled if benchmark.channels == 1 else scaled - 1


def divide(source: Source | None, labels: int, seed: int) -> Data:
    """Some images with labels, as many of each class, the rest without, some to choose rates by.
    `source`: CIFAR-10, whose test images are its own; None for digits. `labels`: how many images
    keep theirs, a multiple of the number of classes. `seed`: of the division. Raises DataError for
    a folder of another layout, and for classes with too few images.
    """
    benchmark = CIFAR10 if source else DIGITS
    (images, truth), test = _all(source)
    order = mf.random.permutation(mf.random.key(seed), len(truth))
    if test is None:
        tested, order = order[:DIGITS_TESTED], order[DIGITS_TESTED:]
        test = images[tested], truth[tested]
    each = labels // CLASSES
    # a small folder keeps at least half of its images to learn from
    count = min(benchmark.validation, len(order) // 2)
    held, rest = order[:count], order[count:]
    classes = truth[rest]
    few = torch.cat([rest[classes == label][:each] for label in range(CLASSES)])
    if len(few) < labels:
        raise DataError(
            f"{source}: {len(rest)} training images are left beside {count} that choose rates, too "
            f"few for {each} labels of each of {CLASSES} classes"
        )
    return Data(images[few], truth[few], images[rest], images[held], truth[held], *test)


Labelled = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=1)
def _all(source: Source | None) -> tuple[Labelled, Labelled | None]:
    """Images and labels, to learn from and to test on if that is fixed."""
    if source:
        return read(Path(source.folder))
    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.uint8).reshape(-1, 1, 8, 8)
    return (images, torch.as_tensor(labels, dtype=torch.int64)), None


def find(folder: Path) -> Path:
    """Where the six files are: in the folder or in `cifar-10-batches-py` in it. Raises DataError:
    which files were looked for, which were found.
    """
    for place in (folder, folder / INNER):
        found = names_in(place)
        missing = [name for name in (*TRAIN, TEST) if name not in found]
        if not missing:
            return place
        if len(missing) <= len(TRAIN):
            raise DataError(
                f"{place}: looked for {', '.join(missing)}, which are not there; found "
                f"{', '.join(found)}"
            )
    raise DataError(
        f"{folder}: not CIFAR-10; looked for {TRAIN[0]} … {TRAIN[-1]} and {TEST} there and in "
        f"{INNER}, found {listed(folder)}. Expected: torchvision's Python files, unpacked"
    )


def files(folder: Path) -> list[Path]:
    """The six files that are read. Raises DataError as `find` does."""
    place = find(folder)
    return [place / name for name in (*TRAIN, TEST)]


def read(folder: Path) -> tuple[Labelled, Labelled]:
    """Training and test images, `[image, 3, 32, 32]` and their labels. Raises DataError for a
    folder of another layout, or a file that holds something else.
    """
    place = find(folder)
    parts = [_batch(place / name) for name in TRAIN]
    images, labels = (torch.cat(leaves) for leaves in zip(*parts, strict=True))
    return (images, labels), _batch(place / TEST)


def _batch(path: Path) -> Labelled:
    images, labels = arrays(path, {"labels": CLASSES}, "fine_labels", "CIFAR-100")
    return images, torch.from_numpy(labels)


def arrays(path: Path, classes: dict[str, int], another: str, others: str) -> list[Any]:
    """The images of one of CIFAR's files, a tensor, and its labels, arrays. `path`: of the file.
    `classes`: how many there are, by the name of the labels. `another`: a name that files of
    `others`, another data set, have. `others`: what that is called. Raises DataError for a file
    that holds something else.
    """
    held = unpickled(path)
    items = held.items() if isinstance(held, dict) else ()
    # files of Python 2 have keys of bytes
    named = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in items}
    if not {"data", *classes} <= {*named}:
        more = f" ({another}: is this {others}?)" if another in named else ""
        raise DataError(
            f"{path}: looked for {', '.join(('data', *classes))}, found "
            f"{', '.join(map(str, named)) or 'no dictionary'}{more}"
        )
    pixels = np.asarray(named["data"])
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
        raise DataError(
            f"{path}: data of shape {pixels.shape} and {pixels.dtype}; expected [image, 3072] of "
            "uint8, images of 3 x 32 x 32"
        )
    found: list[Any] = [torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())]
    for name, count in classes.items():
        labels = np.asarray(named[name])
        if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu":
            raise DataError(
                f"{path}: {name} of shape {labels.shape} and {labels.dtype}; expected "
                f"{len(pixels)} integers, one an image"
            )
        outside = sorted({int(x) for x in labels[(labels < 0) | (labels >= count)]})
        if outside:
            raise DataError(
                f"{path}: {name} {', '.join(map(str, outside[:5]))} outside the classes; expected "
                f"0 to {count - 1}"
            )
        found.append(labels.astype(np.int64))
    return found


ARRAYS = {
    (module, name)
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("ndarray", "dtype", "_reconstruct")
}


class _Arrays(pickle.Unpickler):
    """Arrays and plain containers: a pickle may otherwise call anything at all."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes to old protocols
            return _encoded
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name} is refused")
        return _reconstruct if name == "_reconstruct" else getattr(np, name)


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the encoding {encoding} is refused")
    return text.encode("latin1")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """What numpy's own function of this name starts an array with."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"an array of kind {kind.__name__} is refused")
    return np.empty(shape, np.dtype(code.decode("ascii")))


def unpickled(path: Path) -> Any:
    """A pickle of arrays, dictionaries, lists, numbers, text and bytes. Raises DataError where it
    asks for anything else, and where it is not a pickle.
    """
    try:
        with reading(path), path.open("rb") as file:
            return _Arrays(file, encoding="bytes").load()
    except DataError:
        raise
    except Exception as error:  # broken pickles raise what they like, TypeError and IndexError too
        raise DataError(
            f"{path}: cannot be read as a pickle of arrays, dictionaries and bytes "
            f"({type(error).__name__}: {error}); anything else is refused, as it can run code"
        ) from error
