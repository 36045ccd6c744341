"""MNIST's files, written by hand."""

import gzip
import struct
from pathlib import Path

import numpy as np

from experiments.multimnist import mnist


def idx_bytes(array: np.ndarray) -> bytes:
    """The official format, written by hand."""
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, counts=(24, 8), *, zipped: bool = False, inner: str = "") -> Path:
    """Random pictures and labels in the official layout."""
    place = folder / inner
    place.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate(zip(mnist.PARTS, counts, strict=True)):
        generator = np.random.default_rng(seed)
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        for name, array in (
            (f"{part}-images-idx3-ubyte", images),
            (f"{part}-labels-idx1-ubyte", labels),
        ):
            held = idx_bytes(array)
            path = place / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(held) if zipped else held)
    return folder
