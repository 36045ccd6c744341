"""What a CUDA device does with all of this, in eight minutes: one table, and a file to keep.

    python -m experiments.benchmarks.gpu [--out DIR] [--minutes 8] [--parts kernel times ...]

Parts: the tests that need a device; steps next to the loops that people write; every rule's
captured step; lanes; the routes of a trunk's rows; weightings of samples; the Triton kernel against
the CPU kernel on the hard families, and its times; Gramians next to TorchJD's; CAGrad's toy; the
compiler's modes. Each is its own process with a share of the time that is left when it starts.
Every number is in gpu.json as soon as it is measured, so a part that hangs, crashes or is killed
costs nothing but itself. A run that was stopped goes on with the parts that have not finished,
--again measures all again. Without a CUDA device the command says what it would do. `--device cpu
--tiny` runs the same code on small sizes, to test it.
"""

import argparse
import datetime
import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.func import vmap

from common.arguments import folder, positive
from experiments.benchmarks import gpu_cases, gramian, solvers, toy
from experiments.benchmarks.families import FAMILIES, gramians
from experiments.benchmarks.gpu_cases import ENDED, FAILED, found, guarded
from experiments.benchmarks.measuring import in_turns
from experiments.benchmarks.record import Record, Row, plain, settings
from experiments.benchmarks.solvers_peers import KINDS, SOLVERS, Weigh

ROOT = Path(__file__).parents[2]
ROUNDING = 1e4 * torch.finfo(torch.float64).eps  # the certificate's "optimal to rounding"
SINGLE, BATCH = "min_norm, T = 32, batch 1", "min_norm, T = 8, batch 16384"
TARGETS = {SINGLE: 60.0, BATCH: 50.0}
"""µs of a call."""
GRAMIAN_TARGETS = {"time": 1.0, "peak memory": 0.35}
"""Of the best of TorchJD's, for ResNet-18 and 40 tasks."""


def device_tests(device: str, tiny: bool) -> Iterator[Row]:
    """The tests with the device in their name, of the files that speak of CUDA."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if _on_device(path)]
    with tempfile.TemporaryDirectory() as kept:
        report = Path(kept) / "report.xml"
        chosen = f"{device} and random" if tiny else device
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
        command += ["-o", "addopts=", "-k", chosen, f"--junitxml={report}", *map(str, files)]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
        bad = [
            f"{case.get('name')}"
            for case in suite.iter("testcase")
            if case.find("failure") is not None or case.find("error") is not None
        ]
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    note = f"of {total}, {skipped} skipped" + (f": {', '.join(bad)}" if bad else "")
    yield found("tests that fail", float(len(bad)), "", note, 0.0)


def _on_device(path: Path) -> bool:
    return "cuda.is_available" in path.read_text(encoding="utf-8")


def kernel(device: str, tiny: bool) -> Iterator[Row]:
    """Worst certified gap on the hard families, next to the CPU kernel's on the same problems."""
    # the kernel compiles for each power of 2
    for tasks in (2, 3) if tiny else (2, 3, 5, 8, 32, 128):
        for kind in KINDS[:3]:
            measure = partial(_gaps, kind, tasks, 1 if tiny else 8, device)
            yield from guarded(f"{kind}, T = {tasks}: worst gap", measure)


def _gaps(kind: str, tasks: int, each: int, device: str) -> Iterator[Row]:
    weigh = vmap(SOLVERS["active_set"].make(kind))
    worst: dict[str, tuple[float, float, float]] = {}
    for family in FAMILIES:
        g = gramians(family, tasks, each, 3)
        here, there = weigh(g), weigh(g.to(device)).cpu()
        apart = here - there
        off = torch.einsum("bi,bij,bj->b", apart, g, apart).clamp_min(0)
        off = (off / g.diagonal(dim1=1, dim2=2).amax(-1)).sqrt().amax()
        gap, own = (solvers.gap(kind, g, w) for w in (there, here))
        worst[family] = (gap, own, float(off))
    family = max(worst, key=lambda name: worst[name][0])
    gap, own, off = (max(column) for column in zip(*worst.values(), strict=True))
    note = f"{family}; CPU kernel's {own:.1e}; directions differ by {off:.1e} of max‖g‖ at most"
    limit = max(ROUNDING, 10 * own)
    yield found(f"{kind}, T = {tasks}: worst gap", gap, "", note, limit)


def times(device: str, tiny: bool) -> Iterator[Row]:
    """Time of a call of the kernel, as a replayed CUDA graph where there is a GPU."""
    sizes = (2, 8) if tiny else (2, 3, 8, 32, 64, 128)
    batches = (1, 8) if tiny else (1, 64, 1024, 16384, 65536)
    cells = [("min_norm", t, b) for t in sizes for b in batches if b * t**2 <= 2**28]
    large = 8 if tiny else 16384
    cells += [(kind, t, b) for kind in KINDS[1:3] for t in sizes[1:4] for b in (1, large)]
    # what has a target first, then from small to large, so that a budget cuts what takes longest
    cells.sort(key=lambda cell: (_name(*cell) not in TARGETS, cell[2] * cell[1] ** 2))
    for cell in cells:
        name, measure = _name(*cell), partial(_time, *cell, device, 0.02 if tiny else 0.4)
        yield from guarded(name, measure, TARGETS.get(name))


def _name(kind: str, tasks: int, batch: int) -> str:
    return f"{kind}, T = {tasks}, batch {batch}"


def _time(kind: str, tasks: int, batch: int, device: str, seconds: float) -> Iterator[Row]:
    weigh = SOLVERS["active_set"].make(kind)
    g = solvers.mixed(tasks, min(batch, 1024)).repeat(-(-batch // 1024), 1, 1)[:batch].to(device)
    call, given = (vmap(weigh), g) if batch > 1 else (weigh, g[0])
    call(given)
    (eager,) = in_turns({"": lambda: call(given)}, seconds, device=device).values()
    value, note = 1e6 * median(eager), "the call from Python"
    if device == "cuda":
        note = f"replayed; {value:.3g} from Python"
        value = 1e6 * batch * replay_seconds(weigh, g, seconds)
    name = _name(kind, tasks, batch)
    yield found(name, value, "µs a call", note, TARGETS.get(name))


def replay_seconds(weigh: Weigh, g: Tensor, seconds: float) -> float:
    """Median time a problem of a replayed CUDA graph: the GPU's work without Python's share."""
    call, given = (vmap(weigh), g) if len(g) > 1 else (weigh, g[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(given)
    (times,) = in_turns({"": graph.replay}, seconds, device="cuda").values()
    return median(times) / len(g)


def gramian_times(device: str, tiny: bool) -> Iterator[Row]:
    """Time and peak memory of one Gramian, ours and TorchJD's."""
    image = 8 if tiny else gramian.IMAGES["cuda"]
    shapes = {
        "resnet18": (2, 2) if tiny else (40, 64),
        "mlp-sample": (1, 4) if tiny else (1, 128),
        "decoders": (2, 2) if tiny else (4, 64),
    }
    for family, (tasks, batch) in shapes.items():
        case = gramian.Case(family, tasks, batch, image, device)
        yield from guarded(case.name(), partial(_gramian, case, 0.01 if tiny else 1.0))


def _gramian(case: gramian.Case, seconds: float) -> Iterator[Row]:
    gramian.precision(case)
    peers = ["TorchJD autojac", "TorchJD autogram"]
    rows = [
        row
        for row in gramian.measure(case, seconds, methods=["ours, auto", *peers])
        if row["quantity"] == "gramian"
    ]
    for row in rows:
        name = f"{case.name()}: {row['method']}"
        if "failed" in row:
            yield found(name, None, "ms", f"cannot: {row['failed'].splitlines()[0]}")
        else:
            note = f"peak {row['memory'] / 2**20:,.0f} MiB, error {row['error']:.0e}"
            yield found(name, 1e3 * row["median"], "ms", note)
    done = {row["method"]: row for row in rows if "median" in row}
    for what, key in (("time", "median"), ("peak memory", "memory")):
        theirs = [done[name][key] for name in peers if name in done]
        if "ours, auto" in done and theirs:
            target = GRAMIAN_TARGETS[what] if case.family == "resnet18" else None
            ratio = done["ours, auto"][key] / min(theirs)
            yield found(f"{case.name()}: {what}", ratio, "of TorchJD's best", "", target)


def toy_times(device: str, tiny: bool) -> Iterator[Row]:
    """CAGrad's toy, all runs side by side in one compiled program."""
    script = toy.script_microseconds("CAGrad", 5 if tiny else 500)
    for lanes in toy.lanes_of("CAGrad", device):
        case = f"CAGrad's toy, {len(lanes.sign)} runs"
        yield from guarded(case, partial(_toy, case, lanes, script, tiny))


def _toy(case: str, lanes: toy.cagrad_toy.Lanes, script: float, tiny: bool) -> Iterator[Row]:
    row = toy.measure(lanes, 1, 2 if tiny else 500, compiled=not tiny)
    note = f"compiled in {row['compilation_s']:.0f} s; the script {script:,.0f} on a CPU"
    yield found(case, row["library_us"], "µs a step and run", note)


class Part(NamedTuple):
    """What is measured, and its share of the time."""

    run: Callable[[str, bool], Iterator[Row]]
    share: float
    does: str


PARTS = {
    "tests": Part(device_tests, 0.1, "the tests that need a device"),
    "steps": Part(gpu_cases.step_times, 0.1, "steps beside the shortest loop's and TorchJD's"),
    "launches": Part(gpu_cases.step_launches, 0.05, "what those steps launch"),
    "capture": Part(gpu_cases.capture, 0.12, "every rule's captured step against the eager one"),
    "lanes": Part(gpu_cases.lanes, 0.05, "captured lanes: 1, 64, 1,024 and 4,096 runs"),
    "routes": Part(gpu_cases.routes, 0.06, "a trunk's rows: T passes, one batched pass"),
    "weightings": Part(
        gpu_cases.weighting_times, 0.19, "weightings: MLP, GPT-2 small, LoRA, Llama-shaped 1.1 B"
    ),
    "kernel": Part(
        kernel, 0.08, f"the Triton kernel against the CPU kernel, {len(FAMILIES)} families"
    ),
    "times": Part(times, 0.06, "its times, T = 2 … 128, batch 1 … 65,536"),
    "gramian": Part(
        gramian_times, 0.08, "Gramians beside TorchJD's: ResNet-18 T = 40, MLP, decoders"
    ),
    "toy": Part(toy_times, 0.05, "CAGrad's toy, compiled"),
    "compiler": Part(gpu_cases.compiler, 0.06, "torch.compile by its modes"),
}


def run_part(name: str, device: str, tiny: bool, record: Record) -> None:
    """In a process of its own: keep every row as it comes, and at the end the peak memory."""
    common = {"part": name, "day": datetime.date.today().isoformat()}
    if device == "cuda":
        gc.freeze()  # what is imported: a recording collects garbage several times
    for row in PARTS[name].run(device, tiny):
        record.keep(common | row)
    if device == "cuda":
        peak, note = torch.cuda.max_memory_allocated(), "allocated on the device"
    else:
        peak, note = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "of the process"
    record.keep(common | found("peak memory", peak / 2**20, "MiB", note))


def _failed(row: Row) -> bool:
    return row["note"].startswith(FAILED)


def within(command: Sequence[str], seconds: float) -> str:
    """Run a command and all that it starts for so long; how it ended, in words."""
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, cwd=ROOT, stderr=errors, start_new_session=True)
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after its {seconds:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if status == 0:
            return "finished"
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        return f"failed with status {status}: {lines[-1] if lines else 'no message'}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--out", type=folder, default=str(Path(__file__).parent / "out"))
    add("--minutes", type=positive, default=8.0, help="for everything (default: 8)")
    add("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    add("--again", action="store_true", help="measure anew what the record already has")
    add("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to test this command")
    add("--tiny", action="store_true", help="small sizes, to test this command")
    add("--inside", choices=list(PARTS), help=argparse.SUPPRESS)  # of a part's own process
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    given = _parser().parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device: nothing is measured. On one, this would run")
        for name in given.parts:
            allowed = 60 * given.minutes * PARTS[name].share
            print(f"  {name:10} {PARTS[name].does}, about {allowed:.0f} s")
        return
    chosen = settings(device=given.device, tiny=given.tiny)
    path = given.out / "gpu.json"
    if given.inside:
        run_part(given.inside, given.device, given.tiny, Record(path, ("part", "case"), chosen))
        return
    common = ["--out", str(given.out.resolve()), "--device", given.device]
    common += ["--tiny"] * given.tiny
    ended = Record(path, ("part", "case"), chosen).here()
    done = {row["part"] for row in ended if row["case"] == ENDED and row["note"] == "finished"}
    parts = [name for name in given.parts if given.again or name not in done]
    if given.device == "cuda" and parts:  # kernels of the CPU, outside of the time
        subprocess.run([sys.executable, "-m", "mtlfunc.warmup"], cwd=ROOT, check=False)
    end = time.perf_counter() + 60 * given.minutes
    for at, name in enumerate(parts):
        start = time.perf_counter()
        share = PARTS[name].share / sum(PARTS[each].share for each in parts[at:])
        command = [sys.executable, "-m", "experiments.benchmarks.gpu", "--inside", name, *common]
        said = within(command, max(1.0, (end - start) * share))
        record = Record(path, ("part", "case"), chosen)  # with what the part's process wrote
        failed = [row for row in record.here() if row["part"] == name and _failed(row)]
        said += f", but {len(failed)} cases failed" if failed else ""
        about = {"part": name, "day": datetime.date.today().isoformat()}
        record.keep(about | found(ENDED, time.perf_counter() - start, "s", said))
        record.write_tables(plain)
        print(f"{name}: {said}", flush=True)
    if path.exists():
        print((given.out / "gpu.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
