"""MultiMNIST from MNIST's own files: two digits on one canvas.

FOLDER/train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte,
t10k-labels-idx1-ubyte, each as it is or with .gz, in the folder or in MNIST/raw (torchvision).

An idx file is two zero bytes, a byte 8 for unsigned bytes, the number of axes, every axis's length
as a big-endian int32, and the bytes.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

import mtlfunc as mf
from experiments.common.files import DataError, listed, names_in, reading
from experiments.digits.data import overlay

SIDE, CANVAS = 28, 36
OFFSET = CANVAS - SIDE - 2
"""The left digit is at [0:28], the right one at [6:34] of both axes."""

PARTS = ("train", "t10k")
INNER = "MNIST/raw"


def compose(
    left: UInt8[Tensor, "pair 28 28"], right: UInt8[Tensor, "pair 28 28"]
) -> UInt8[Tensor, "pair 28 28"]:
    """Two digits on a canvas of 36 x 36, the larger pixel where both are, resized to 28 x 28.

    The nearest pixel of the canvas is taken, with centres aligned: of row i that at 36/28·(i + ½),
    rounded down.
    """
    both = torch.nn.functional.pad(overlay(left, right, OFFSET), (0, 2, 0, 2))
    near = ((torch.arange(SIDE, device=left.device) + 0.5) * CANVAS / SIDE).long()
    return both.index_select(-1, near).index_select(-2, near)


def pairs(
    images: UInt8[Tensor, "image 28 28"], labels: Int[Tensor, " image"], key: Int[Tensor, ""]
) -> tuple[UInt8[Tensor, "image 28 28"], Int[Tensor, "image 2"]]:
    """Every image as the left digit once, and as the right one once, by a permutation.

    Args:
        images: of single digits.
        labels: theirs.
        key: of the permutation.

    Returns:
        canvases and the labels of both digits, left first.
    """
    partner = mf.random.permutation(key, len(images)).to(labels.device)
    return compose(images, images[partner]), torch.stack([labels, labels[partner]], -1)


def read(folder: Path) -> dict[str, tuple[UInt8[Tensor, "image 28 28"], Int[Tensor, " image"]]]:
    """Images and labels of `"train"` and of `"t10k"`.

    Raises:
        DataError: for a folder of another layout: which files were looked for, which found; and for
            a file that holds something else: the file, what it holds, what was expected.
    """
    place = _find(folder)
    return {part: _part(place, part) for part in PARTS}


def _find(folder: Path) -> Path:
    looked = [f"{part}-{kind}-idx{n}-ubyte" for part in PARTS for kind, n in KINDS]
    for place in (folder, folder / INNER):
        found = names_in(place)
        missing = [name for name in looked if not {name, f"{name}.gz"} & {*found}]
        if not missing:
            return place
        if len(missing) < len(looked):
            raise DataError(
                f"{place}: looked for {', '.join(missing)}, each as it is or with .gz, which are "
                f"not there; found {', '.join(found)}"
            )
    raise DataError(
        f"{folder}: not MNIST; looked for {', '.join(looked)}, each as it is or with .gz, there "
        f"and in {INNER}, found {listed(folder)}"
    )


KINDS = (("images", 3), ("labels", 1))


def files(folder: Path) -> list[Path]:
    """The four files that are read. Raises DataError as `read` does."""
    place = _find(folder)
    return [path for part in PARTS for path in _paths(place, part)]


def _paths(place: Path, part: str) -> list[Path]:
    found = names_in(place)
    looked = [f"{part}-{kind}-idx{axes}-ubyte" for kind, axes in KINDS]
    return [place / (name if name in found else f"{name}.gz") for name in looked]


def _part(place: Path, part: str) -> tuple[Tensor, Tensor]:
    paths = _paths(place, part)
    images, labels = (idx(path, axes) for path, (_, axes) in zip(paths, KINDS, strict=True))
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(
            f"{paths[0]}: images of {images.shape[1]} x {images.shape[2]} pixels; expected "
            f"{SIDE} x {SIDE}"
        )
    if len(images) != len(labels):
        raise DataError(f"{paths[1]}: {len(labels)} labels for {len(images)} images")
    outside = sorted(set(labels[labels > 9].tolist()))
    if outside:
        raise DataError(
            f"{paths[1]}: labels {', '.join(map(str, outside[:5]))} outside the classes; expected "
            "0 to 9"
        )
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def idx(path: Path, axes: int) -> np.ndarray:
    """An array of unsigned bytes.

    Args:
        path: of the file, gzipped if it ends in .gz.
        axes: how many it must have.

    Raises:
        DataError: for a file that is not of this format, or is cut short.
    """
    with reading(path):
        held = path.read_bytes()
    try:
        held = gzip.decompress(held) if path.suffix == ".gz" else held
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({error})") from error
    begins = bytes([0, 0, 8, axes])
    if held[:4] != begins or len(held) < 4 * (1 + axes):
        raise DataError(
            f"{path}: begins with {held[:4].hex(' ') or 'nothing'}; expected {begins.hex(' ')}, an "
            f"idx file of unsigned bytes with {axes} ax{'i' if axes == 1 else 'e'}s"
        )
    shape = struct.unpack(f">{axes}i", held[4 : 4 * (1 + axes)])
    size = len(held) - 4 * (1 + axes)
    if min(shape) < 1 or math.prod(shape) != size:
        raise DataError(
            f"{path}: says that it holds {' x '.join(map(str, shape))} bytes, and has {size}"
        )
    return np.frombuffer(held, np.uint8, offset=4 * (1 + axes)).reshape(shape).copy()
