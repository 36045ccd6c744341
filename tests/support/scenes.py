"""Folders of scenes."""

from pathlib import Path

import numpy as np

from experiments.scenes.data import Benchmark
from experiments.scenes.metrics import NORMAL


def write_folder(
    root: Path, benchmark: Benchmark, counts=(3, 2), size=(32, 64), label: str = "label"
) -> Path:
    """Random arrays in the official layout."""
    generator = np.random.default_rng(0)
    for part, count in zip(("train", "val"), counts, strict=True):
        normals = ["normal"] if NORMAL in benchmark.tasks else []
        kinds = ["image", label, "depth", *normals]
        for kind in kinds:
            (root / part / kind).mkdir(parents=True)
        for i in range(count):
            normal = generator.normal(size=(*size, 3))
            arrays = {
                "image": generator.random((*size, 3)).astype(np.float32),
                label: generator.integers(-1, benchmark.classes, size).astype(np.float64),
                "depth": generator.random((*size, 1)).astype(np.float32) + 0.1,
                "normal": normal / np.linalg.norm(normal, axis=-1, keepdims=True),
            }
            for kind in kinds:
                np.save(root / part / kind / f"{i}.npy", arrays[kind])
    return root
