"""Parts of a device's benchmark: each is a dictionary of cases, whose calls yield rows."""

import copy
import gc
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from experiments.benchmarks import gramian, solvers, steps, weightings
from experiments.benchmarks.families import FAMILIES, gramians
from experiments.benchmarks.measuring import Call, in_turns, timed, with_memory
from experiments.benchmarks.networks import GPT, Llama, Of, Size, resnet18
from experiments.benchmarks.record import Row

Cases = dict[str, Callable[[], Iterable[Row]]]
LIVE, LOOP = "mf.Balancer", "shortest loop"
UNEQUAL = "configurations not captured, or not equal to eager"
BARS = {
    "tests that fail": 0.0, f".*: {LIVE} / {LOOP}, time": 1.0,
    f".*: {LIVE} / {LOOP}, peak memory": 1.3, f"ResNet-18, 10 tasks.*: {LIVE} / TorchJD, time": 0.8,
    f"ResNet-18, 10 tasks.*: {LIVE} / TorchJD, peak memory": 1.3, UNEQUAL: 0.0,
    ".*, Adam, 4,096 runs": 0.9, f"MLP.*, K = 64: {LIVE}": 3.5, "MLP.*, K = 64: captured": 1.0,
    f"Llama.*: {LIVE}( / plain, time)?": 2.3, f"Llama.*: {LIVE} / plain, peak memory": 1.5,
    "min_norm, T = 32, batch 1": 60.0, "min_norm, T = 8, batch 16384": 50.0,
    "ResNet-18, 64×64, 40 tasks.*: time": 1.0, "ResNet-18, 64×64, 40 tasks.*: peak memory": 0.35,
}  # fmt: skip
"""What cases, by patterns, should be at most."""
ROUNDING = 1e4 * torch.finfo(torch.float64).eps  # the certificate's "optimal to rounding"
GRAPHS = ("captured", "compiled")  # their memory is a pool that is not freed between calls


class On(NamedTuple):
    """Where cases run, and whether in small, to test them."""

    device: str
    tiny: bool
    rows: Callable[[], list[Row]] = list  # that the record has by now

    def seconds(self, full: float) -> float:
        return full / 50 if self.tiny else full


def found(
    case: str, value: float | None, unit: str = "", note: str = "", target: float | None = None
) -> Row:
    """A measurement, with its bar unless it has another target."""
    if target is None:
        target = next((most for name, most in BARS.items() if re.fullmatch(name, case)), None)
    return {"case": case, "value": value, "unit": unit, "note": note, "target": target}


def failed(case: str, error: Exception) -> Row:
    """The row of a case that cannot be measured."""
    first = (str(error).splitlines() or [""])[0]
    return found(case, None, "", f"failed: {type(error).__name__}: {first}")


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def ratios(
    case: str,
    calls: Mapping[str, Call],
    on: On,
    seconds: float,
    pairs: Sequence[tuple[str, str]] = (),
    least: int = 7,
) -> Iterator[Row]:
    """A row a call: its time in units of the first one's, which comes in milliseconds; and for
    `pairs` of calls that both run the ratios of time and peak memory. All take turns, `least` or
    more, `seconds` for all, after one call each.
    """
    memory: dict[str, int | None] = {}
    errors: dict[str, Exception] = {}
    for name, call in calls.items():
        try:
            call()
            memory[name] = None if name in GRAPHS else with_memory(call, on.device)[1]
        except Exception as error:
            errors[name] = error.with_traceback(None)  # whose frames hold tensors
            gc.collect()
            if on.device == "cuda":
                torch.cuda.empty_cache()
    first = next(iter(calls))
    if first in errors:
        raise errors[first]
    able = {name: calls[name] for name in memory}
    taken = in_turns(able, on.seconds(seconds), on.device, least=least)
    times = {name: median(each) for name, each in taken.items()}
    for name in calls:
        label = f"{case}: {name}"
        if name in errors:
            yield failed(label, errors[name])
            continue
        held, ms = memory[name], 1e3 * times[name]
        note = f"{ms:.3g} ms" + ("" if held is None else f", {size(held)}")
        value, unit = (ms, "ms") if name == first else (times[name] / times[first], "plain steps")
        yield found(label, value, unit, note) | {"memory": held}
    for ours, other in pairs:
        if ours in times and other in times:
            label = f"{case}: {ours} / {other}"
            yield found(f"{label}, time", times[ours] / times[other])
            if memory[other]:
                yield found(f"{label}, peak memory", (memory[ours] or 0) / (memory[other] or 1))


def device_tests(on: On) -> Cases:
    """The tests that need a device: those with it in their name, of files that speak of CUDA."""

    def run() -> Iterator[Row]:
        tests = Path(__file__).parents[2] / "tests"
        files = [x for x in tests.glob("test_*.py") if "cuda.is_available" in x.read_text("utf-8")]
        command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", "-p", "no:xdist"]
        command += ["-p", "no:cacheprovider", "-o", "addopts=", *map(str, sorted(files))]
        command += ["-k", f"{on.device} and random" if on.tiny else on.device]
        done = subprocess.run(command, cwd=tests.parent, capture_output=True, check=False)
        lines = done.stdout.decode().splitlines()
        bad = [x.split(" - ")[0] for x in lines if x.startswith(("FAILED ", "ERROR "))]
        counts = re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])
        count = {kind: int(number) for number, kind in counts}
        note = f"of {sum(count.values())}, {count.get('skipped', 0)} skipped"
        note += f": {', '.join(x.rpartition('::')[2] for x in bad)}" if bad else ""
        yield found("tests that fail", float(len(bad)), "", note)

    return {"tests that fail": run}


# Steps: networks of `experiments.benchmarks.steps`

LARGE = steps.Case(
    lambda: (steps.Shared(resnet18(64), 64, 4), torch.randn(64, 3, 64, 64)),
    "ResNet-18, 4 tasks, batch 64, 64 px, TF32",
)
MLP, RESNET = steps.CASES["mlp"], steps.CASES["resnet"]
RULES = {"mgda": mf.mgda(), "cagrad": mf.cagrad(0.4), "pcgrad": mf.pcgrad()}


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Products of float32 by TF32, or as torch does them by default."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def made(case: steps.Case | weightings.Case, on: On) -> tuple[Any, Tensor]:
    """A network and its batch on the device, from a seed; what earlier ones held is freed."""
    gc.collect()
    torch.manual_seed(0)
    with torch.device(on.device):
        return case.make()


def _networks(on: On) -> list[steps.Case]:
    return [MLP] if on.tiny else [*steps.CASES.values(), LARGE]


def _chosen(case: steps.Case, on: On) -> dict[str, Call]:
    calls = steps.contenders(*made(case, on))
    return {name: calls[name] for name in ("plain", LOOP, LIVE, "TorchJD") if name in calls}


def step_times(on: On) -> Cases:
    """Steps next to the shortest loop's and TorchJD's."""

    def live(case: steps.Case) -> Iterator[Row]:
        with tf32(case is LARGE):
            pairs = [(LIVE, LOOP), (LIVE, "TorchJD")][: 2 if case is RESNET else 1]
            yield from ratios(case.what, _chosen(case, on), on, 0.5, pairs)

    def captured(case: steps.Case) -> Iterator[Row]:
        net, x = made(case, on)
        step = pure_step(net, mf.mgda())
        call = repeated(mf.capture(step).update, step.init(mf.parameters(net), x), x)
        calls = {"plain with SGD": with_sgd(net, x), "captured": call}
        yield from ratios(case.what, calls, on, 0.2)

    cases: Cases = {}
    for case in _networks(on):
        cases[case.what] = partial(live, case)
        if case is not LARGE:
            cases[f"{case.what}: captured"] = partial(captured, case)
    return cases


def with_sgd(net: steps.Net, x: Tensor) -> Call:
    """A plain step with its optimizer, on a copy of the network."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)

    def plain() -> None:
        optimizer.zero_grad()
        torch.stack(net(x)).mean().backward()
        optimizer.step()

    return plain


def pure_step(net: steps.Net, rule: mf.Rule, optimizer: mf.Optimizer | None = None) -> mf.Step:
    """A step with its optimizer as a pure function."""
    losses_fn = steps.losses_of(net)
    return mf.descend(losses_fn, rule, mf.jacobian("trunk.*"), optimizer or mf.sgd(1e-3))


def repeated(update: Callable[..., Any], state: Any, x: Tensor) -> Call:
    """A call is the next step, from the state that the last one left."""

    def call() -> None:
        nonlocal state
        state, _ = update(state, x)

    return call


def capture(on: On) -> Cases:
    """Every rule's captured step next to an eager plain one, and whether it equals that one."""
    from tests.support.registry import RULES as every  # next to this folder in a checkout

    names = ["mean", "mgda", "pcgrad", "gradnorm"] if on.tiny else list(every)
    # cvxpy's rules solve on the host by construction
    names = [name for name in names if not name.endswith("-cvx")]

    @cache
    def plain() -> list[Row]:
        return list(ratios(MLP.what, {"plain": with_sgd(*made(MLP, on))}, on, 0.3))

    def rule(name: str) -> Iterator[Row]:
        net, x = made(MLP, on)
        batches = [x * (1 + 0.1 * n) + 0.1 * n for n in range(3)]
        step = pure_step(net, every[name].make())
        program, start = mf.capture(step), step.init(mf.parameters(net), x)
        eager, captured = (_states(f, start, batches) for f in (step.update, program.update))
        torch.testing.assert_close(captured, eager, rtol=0, atol=0, equal_nan=True)
        call = repeated(program.update, start, x)
        call()
        times = in_turns({"": call}, on.seconds(0.03), device=on.device)[""]
        ms = 1e3 * median(times)
        note = f"{ms:.3g} ms, equal to eager bit for bit over 3 batches"
        yield found(name, ms / plain()[0]["value"], "eager plain steps", note)

    def unequal() -> Iterator[Row]:
        own = [row for row in on.rows() if row["part"] == "capture" and row["case"] in names]
        bad = [row["case"] for row in own if row["value"] is None]
        note = f"of {len(own)}" + (f": {', '.join(bad)}" if bad else "")
        yield found(UNEQUAL, float(len(bad)), "", note)

    each: Cases = {name: partial(rule, name) for name in names}
    return {MLP.what: plain, **each, UNEQUAL: unequal}


def _states(update: Callable[..., Any], state: Any, batches: list[Tensor]) -> list[Tensor]:
    """The state and the step's report after every batch."""
    kept: list[Tensor] = []
    for batch in batches:
        state, info = update(state, batch)
        kept += [x for x in tree_leaves((state, info)) if isinstance(x, Tensor)]
    return kept


def lanes(on: On) -> Cases:
    """Whole trainings side by side in one captured program: 1, 64, 1,024 and 4,096 runs."""

    def run(label: str, rule: str, runs: int) -> Iterator[Row]:
        net, x = made(MLP, on)
        step = pure_step(net, RULES[rule], mf.adam(1e-3))
        program = mf.capture(mf.Step(vmap(step.init), vmap(step.update)))
        draw = torch.Generator(on.device).manual_seed(0)

        def spread(leaf: Tensor) -> Tensor:
            noise = torch.randn(runs, *leaf.shape, generator=draw, device=on.device)
            return leaf + 0.01 * noise

        params = {name: spread(leaf) for name, leaf in mf.parameters(net).items()}
        batch, keys = spread(x), torch.arange(runs, device=on.device)
        call = repeated(program.update, program.init(params, batch, keys), batch)
        _, memory = with_memory(lambda: (call(), call()), on.device)
        call()
        each = [timed(call, on.device, 3 if on.tiny else 100) for _ in range(5)]
        seconds = median(each)
        note = f"{1e3 * seconds:.3g} ms a step, {size(memory)}"
        yield found(label, 1e6 * seconds / runs, "µs a run and step", note)

    sizes = (1, 4) if on.tiny else (1, 64, 1024, 4096)
    cells = [*(("mgda", runs) for runs in sizes), ("cagrad", sizes[-1]), ("pcgrad", sizes[-1])]
    named = {f"{rule}, Adam, {runs:,} runs": (rule, runs) for rule, runs in cells}
    return {label: partial(run, label, *cell) for label, cell in named.items()}


# Weightings of samples


def _autocast(net: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return net(x).float()


SMALL = weightings.CASES["mlp"]


def _models(on: On) -> Iterator[weightings.Case]:
    """GPT-2 small, and one of Llama's shape."""
    layers, width, length = (1, 32, 8) if on.tiny else (12, 768, 512)
    heads, words = (2, 50) if on.tiny else (12, 50_257)
    of_llama = Size(1, 32, 48, 4, 2, 50) if on.tiny else Size()

    def gpt() -> tuple[nn.Module, Tensor]:
        net = Of(GPT(layers, width, length, heads, words), _autocast)
        return net, torch.randint(words, (4 if on.tiny else 16, length + 1))

    def llama() -> tuple[nn.Module, Tensor]:
        net = Llama(of_llama).bfloat16()
        return net, torch.randint(of_llama.vocabulary, (2 if on.tiny else 8, length + 1))

    yield weightings.Case(gpt, "GPT-2 small, 163 M, 16 × 512 tokens, bf16 autocast", {})
    yield weightings.Case(llama, "Llama-shaped, 1.1 B in bf16, 8 × 512 tokens", {})


def weighting_times(on: On) -> Cases:
    """K weightings of samples: MLP, GPT-2 small, Llama-shaped 1.1 B."""

    def run(label: str, case: weightings.Case, tasks: int, without: str) -> Iterator[Row]:
        calls = weightings.contenders(*made(case, on), tasks)
        calls = {name: call for name, call in calls.items() if name not in ("mf.balance", without)}
        pairs = [(LIVE, "plain")] if label.startswith("Llama") else []
        yield from ratios(label, calls, on, 1.0, pairs, least=3)

    def captured(label: str, tasks: int) -> Iterator[Row]:
        net, x = made(SMALL, on)
        step = mf.capture(weightings.pure_step(net, torch.randn(tasks, len(x), device=on.device)))
        params = mf.parameters(net)
        state = step.init(params, x)

        def call() -> None:
            nonlocal state
            _, state, _ = step.update(params, x, state)

        calls = {"plain": weightings.plain_step(net, x), "captured": call}
        yield from list(ratios(label, calls, on, 1.0))[1:]

    gpt, llama = _models(on)
    cells = [  # K, and the peer that 80 GB do not hold
        (SMALL, 64, ""), (llama, 2, ""), (gpt, 16, "TorchJD"), (gpt, 64, weightings.LOOP),
        (llama, 16, weightings.LOOP), (llama, 4, ""),
    ]  # fmt: skip
    if on.tiny:
        cells = [(case, 2, without) for case, _, without in cells[:3]]
    cases: Cases = {}
    for case, tasks, without in cells:
        label = f"{case.what}, K = {tasks}"
        cases[label] = partial(run, label, case, tasks, without)
        if case is SMALL:
            cases[f"{label}: captured"] = partial(captured, label, tasks)
    return cases


# The kernel of small problems, and Gramians


def kernel(on: On) -> Cases:
    """Worst certified gap on the hard families, next to the CPU kernel's on the same problems."""

    def run(label: str, kind: str, tasks: int) -> Iterator[Row]:
        weigh = vmap(solvers.ours(kind))
        worst: dict[str, list[float]] = {}
        for family in FAMILIES:
            g = gramians(family, tasks, 1 if on.tiny else 8, 3)
            here, there = weigh(g), weigh(g.to(on.device)).cpu()
            worst[family] = [solvers.gap(kind, g, w) for w in (there, here)]
        family = max(worst, key=lambda name: worst[name][0])
        gap, own = (max(column) for column in zip(*worst.values(), strict=True))
        note = f"{family}; CPU kernel's {own:.1e}"
        yield found(label, gap, "", note, max(ROUNDING, 10 * own))

    # the kernel compiles for each power of 2
    cells = [
        (kind, t)
        for t in ((2, 3) if on.tiny else (2, 3, 5, 8, 32, 128))
        for kind in solvers.KINDS[:3]
    ]
    named = {f"{kind}, T = {t}: worst gap": (kind, t) for kind, t in cells}
    return {label: partial(run, label, *cell) for label, cell in named.items()}


def times(on: On) -> Cases:
    """Its times, T = 2 … 128, batch 1 … 65,536: as a replayed CUDA graph where there is a GPU."""

    def microseconds(call: Call) -> float:
        return 1e6 * median(in_turns({"": call}, on.seconds(0.4), device=on.device)[""])

    def run(label: str, tasks: int, batch: int) -> Iterator[Row]:
        weigh, some = solvers.ours("min_norm"), solvers.mixed(tasks, min(batch, 1024))
        g = some.repeat(-(-batch // 1024), 1, 1)[:batch].to(on.device)
        call = partial(vmap(weigh), g) if batch > 1 else partial(weigh, g[0])
        call()
        value, note = microseconds(call), "the call from Python"
        if on.device == "cuda":
            note = f"replayed; {value:.3g} from Python"
            value = microseconds(recorded(call).replay)
        yield found(label, value, "µs a call", note)

    sizes = (2, 8) if on.tiny else (2, 3, 8, 32, 64, 128)
    batches = (1, 8) if on.tiny else (1, 64, 1024, 16384, 65536)
    cells = [(t, b) for t in sizes for b in batches if b * t**2 <= 2**28]
    # what has a bar first, then from small to large, so that a budget cuts what takes longest
    named = {f"min_norm, T = {t}, batch {b}": (t, b) for t, b in cells}
    order = sorted(named, key=lambda x: (x not in BARS, named[x][1] * named[x][0] ** 2))
    return {label: partial(run, label, *named[label]) for label in order}


def recorded(call: Call) -> torch.cuda.CUDAGraph:
    """The GPU's work without Python's share."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def gramian_times(on: On) -> Cases:
    """Time and peak memory of Gramians next to TorchJD's: ResNet-18 of 40 tasks, MLP, decoders."""
    peers, ours = gramian.TORCHJD, gramian.OURS

    def run(case: gramian.Case) -> Iterator[Row]:
        fast, done = case.family == "resnet18", dict[str, Row]()
        torch.backends.cudnn.allow_tf32 = fast  # full float32 in the others
        with tf32(fast):
            rows = gramian.measure(case, on.seconds(1.0), [ours, *peers])
        for row in rows:
            name = f"{case.name()}: {row['method']}"
            if "failed" in row:
                yield found(name, None, "ms", f"cannot: {row['failed'].splitlines()[0]}")
            else:
                done[row["method"]] = row
                note = f"peak {row['memory'] / 2**20:,.0f} MiB, error {row['error']:.0e}"
                yield found(name, 1e3 * row["median"], "ms", note)
        for what, key in (("time", "median"), ("peak memory", "memory")):
            theirs = [done[name][key] for name in peers if name in done]
            if theirs and ours in done:
                ratio = done[ours][key] / min(theirs)
                yield found(f"{case.name()}: {what}", ratio, "of TorchJD's best")

    sizes = {"resnet18": (40, 64), "mlp-sample": (1, 128), "decoders": (4, 64)}
    image = 8 if on.tiny else 64
    chosen = [
        gramian.Case(name, *((2, 4) if on.tiny else full), image, on.device)
        for name, full in sizes.items()
    ]
    return {case.name(): partial(run, case) for case in chosen}
