"""What a CUDA device does with all of this, in eight minutes: one table, and a file to keep.

    python -m experiments.benchmarks.gpu [--out DIR] [--minutes 8] [--parts kernel times ...]

Each part is its own process with a share of the time that is left when it starts. Every case is
in gpu.json as soon as it is measured, so a part that hangs, crashes or is killed costs nothing but
itself. A run that was stopped goes on with what has not been measured, --again measures all again.
Without a CUDA device the command says what it would do. `--device cpu --tiny` runs the same code on
small sizes, to test it.
"""

import argparse
import gc
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import cache

import torch

from common.arguments import positive
from experiments.benchmarks import gpu_cases
from experiments.benchmarks.gpu_cases import Cases, On
from experiments.benchmarks.record import Row, read
from experiments.benchmarks.runner import Axis, Cell, command

PARTS: dict[str, tuple[Callable[[On], Cases], float]] = {
    "tests": (gpu_cases.device_tests, 0.1), "steps": (gpu_cases.step_times, 0.1),
    "capture": (gpu_cases.capture, 0.12), "lanes": (gpu_cases.lanes, 0.05),
    "weightings": (gpu_cases.weighting_times, 0.19), "kernel": (gpu_cases.kernel, 0.08),
    "times": (gpu_cases.times, 0.06), "gramian": (gpu_cases.gramian_times, 0.08),
}  # fmt: skip
"""What is measured, and its share of the time."""


@cache
def cases(part: str, on: On) -> Cases:
    """Of a part, by name."""
    return PARTS[part][0](on)


def _on(given: Namespace) -> On:
    return On(given.device, given.tiny, given.record.here)


def cells(given: Namespace) -> list[Cell]:
    """Every case of the parts; outside of a part's process those that these have measured."""
    if given.inside:
        return [(part, case) for part in given.parts for case in cases(part, _on(given))]
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device: nothing is measured. On one, this would run")
        for name in given.parts:
            run, share = PARTS[name]
            print(f"  {name:10} about {60 * given.minutes * share:3.0f} s: {run.__doc__}")
        raise SystemExit
    if given.device == "cuda":  # kernels of the CPU, outside of the time
        subprocess.run([sys.executable, "-m", "mtlfunc.warmup"], check=False)
    end = time.perf_counter() + 60 * given.minutes
    for at, part in enumerate(given.parts):
        share = PARTS[part][1] / sum(PARTS[each][1] for each in given.parts[at:])
        here = ["--inside", "--parts", part, "--device", given.device, "--out", str(given.out)]
        call = [*here, *["--tiny"] * given.tiny, *["--again"] * given.again]
        said = within(max(1.0, (end - time.perf_counter()) * share), call)
        print(f"{part}: {said}", flush=True)
    given.again = False
    given.record.rows = read(given.record.path)
    return [given.record.cell(row) for row in given.record.here()]


def within(seconds: float, call: list[str]) -> str:
    """This command and all that it starts, for so long; how it ended, in words."""
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", *call]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        status = child.wait(seconds)
        return f"failed with status {status}" if status else "finished"
    except subprocess.TimeoutExpired:
        return f"stopped after its {seconds:.0f} s"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def measure(given: Namespace, part: str, group: str) -> list[Row]:
    """The rows of a case; the last one says how it failed, where it did."""
    rows: list[Row] = []
    try:
        rows.extend(cases(part, _on(given))[group]())  # keeps those before an error
    except Exception as error:  # other cases are measured all the same
        rows.append(gpu_cases.failed(group, error))
    return rows


main = command(
    "gpu",
    __doc__,
    {"part": Axis("parts", list(PARTS)), "group": Axis("", ())},
    measure,
    more={
        "minutes": {"type": positive, "default": 8.0, "help": "for everything (default: 8)"},
        "device": {"default": "cuda", "choices": ["cuda", "cpu"], "help": "cpu: to test this"},
        "tiny": {"action": "store_true", "help": "small sizes, to test this command"},
        "inside": {"action": "store_true", "help": argparse.SUPPRESS},  # of a part's own process
    },
    about=("device", "tiny"),
    cells=cells,
)

if __name__ == "__main__":
    if torch.cuda.is_available():
        gc.freeze()  # what is imported: a recording collects garbage several times
    main()
