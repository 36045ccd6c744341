"""Parts of a device's benchmark: steps, routes of rows, weightings, what records or compiles."""

import copy
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map_only

import mtlfunc as mf
from experiments.benchmarks import steps, weightings
from experiments.benchmarks.llama import Llama, Size
from experiments.benchmarks.measuring import Call, in_turns, launches, operators, timed, with_memory
from experiments.benchmarks.networks import resnet18
from experiments.benchmarks.record import Row

FAILED = "failed:"
ENDED = "the part"  # the case that says how a part ended
GRAPHS = ("captured", "compiled")  # their memory is a pool that is not freed between calls


def found(
    case: str, value: float | None, unit: str, note: str = "", target: float | None = None
) -> Row:
    """A measurement; what has a target should be at most that."""
    return {"case": case, "value": value, "unit": unit, "note": note, "target": target}


def failed(case: str, error: Exception, target: float | None = None) -> Row:
    """The row of a case that cannot be measured."""
    first = (str(error).splitlines() or [""])[0]
    return found(case, None, "", f"{FAILED} {type(error).__name__}: {first}", target)


def guarded(
    case: str, measure: Callable[[], Iterator[Row]], target: float | None = None
) -> Iterator[Row]:
    """The rows of a case, or one that says how it failed: other cases are measured all the same."""
    try:
        yield from measure()
    except Exception as error:
        yield failed(case, error, target)


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


class Taken(NamedTuple):
    """What a call took."""

    seconds: float
    memory: int | None  # peak, in bytes, beyond what was held before

    def row(self, case: str, value: float, unit: str, target: float | None) -> Row:
        """As a measurement."""
        note = f"{1e3 * self.seconds:.3g} ms"
        note += "" if self.memory is None else f", {size(self.memory)}"
        return found(case, value, unit, note, target) | {"memory": self.memory}


def take(
    calls: Mapping[str, Call], device: str, seconds: float, least: int = 7
) -> dict[str, Taken | Exception]:
    """Every call warmed up and measured, in `least` turns or more, `seconds` of all; or why it
    cannot run.
    """
    done: dict[str, Taken | Exception] = {}
    for name, call in calls.items():
        try:
            call()
            memory = None if name in GRAPHS else with_memory(call, device)[1]
            done[name] = Taken(0.0, memory)
        except Exception as error:
            done[name] = error.with_traceback(None)  # whose frames hold tensors
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
    able = {name: calls[name] for name, taken in done.items() if isinstance(taken, Taken)}
    for name, times in in_turns(able, seconds, "wall", device, least=least).items():
        done[name] = done[name]._replace(seconds=median(times))  # pyright: ignore
    return done


def ratios(
    case: str,
    done: Mapping[str, Taken | Exception],
    plain: str = "plain",
    targets: Mapping[str, float] | None = None,
) -> Iterator[Row]:
    """A row a call: its time in units of the plain one, which comes in milliseconds."""
    unit = done[plain]
    if isinstance(unit, Exception):
        raise unit
    for name, taken in done.items():
        label, target = f"{case}: {name}", (targets or {}).get(name)
        if isinstance(taken, Exception):
            yield failed(label, taken, target)
        elif name == plain:
            yield taken.row(label, 1e3 * taken.seconds, "ms", target)
        else:
            yield taken.row(label, taken.seconds / unit.seconds, "plain steps", target)


def over(
    case: str,
    done: Mapping[str, Taken | Exception],
    ours: str,
    other: str,
    limits: tuple[float | None, float | None],
) -> Iterator[Row]:
    """Time and peak memory of one call in units of another's, where both ran."""
    a, b = done.get(ours), done.get(other)
    if isinstance(a, Taken) and isinstance(b, Taken):
        label, (time, memory) = f"{case}: {ours} / {other}", limits
        yield found(f"{label}, time", a.seconds / b.seconds, "", "", time)
        if a.memory is not None and b.memory:
            yield found(f"{label}, peak memory", a.memory / b.memory, "", "", memory)


LIVE, LOOP = "mf.Balancer", "shortest loop"
STEP_LIMITS = (1.0, 1.3)  # time and peak memory of a live step over the shortest loop's
TORCHJD_LIMIT = 0.8  # of its time, for ResNet-18 and 10 tasks


def _large() -> tuple[steps.Shared, Tensor]:
    return steps.Shared(resnet18(64), 64, 4), torch.randn(64, 3, 64, 64)


LARGE = steps.Case(_large, "ResNet-18, 4 tasks, batch 64, 64 px, TF32")


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Products of float32 by TF32, or as torch does them by default."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def made(case: steps.Case | weightings.Case, device: str) -> tuple[Any, Tensor]:
    """A network and its batch on the device, from a seed; what earlier ones held is freed."""
    gc.collect()
    torch.manual_seed(0)
    with torch.device(device):
        return case.make()


def step_times(device: str, tiny: bool) -> Iterator[Row]:
    """Every network's step, in plain steps."""
    for case in _step_cases(tiny):
        measure = partial(_steps, case, device, 0.01 if tiny else 0.5)
        yield from guarded(case.what, measure)
        if case is not LARGE:
            measure = partial(_captured, case, device, 0.01 if tiny else 0.2)
            yield from guarded(f"{case.what}: captured", measure)


def _step_cases(tiny: bool) -> list[steps.Case]:
    return [steps.CASES["mlp"]] if tiny else [*steps.CASES.values(), LARGE]


def _chosen(case: steps.Case, device: str) -> dict[str, Call]:
    calls = steps.contenders(*made(case, device))
    return {name: calls[name] for name in ("plain", LOOP, LIVE, "TorchJD") if name in calls}


def step_launches(device: str, tiny: bool) -> Iterator[Row]:
    """What every step launches. Not with its time: after torch's profiler launches are slower."""
    for case in _step_cases(tiny):
        with tf32(case is LARGE):
            for name, call in _chosen(case, device).items():
                label = f"{case.what}: {name}"
                yield from guarded(label, partial(_launches, call, label, device))


def _launches(call: Call, label: str, device: str) -> Iterator[Row]:
    call()
    count = launches(call) if device == "cuda" else operators(call)
    yield found(label, float(count), "launches")


def _steps(case: steps.Case, device: str, seconds: float) -> Iterator[Row]:
    with tf32(case is LARGE):
        done = take(_chosen(case, device), device, seconds)
    yield from ratios(case.what, done)
    yield from over(case.what, done, LIVE, LOOP, STEP_LIMITS)
    if case is steps.CASES["resnet"]:
        yield from over(case.what, done, LIVE, "TorchJD", (TORCHJD_LIMIT, STEP_LIMITS[1]))


def _captured(case: steps.Case, device: str, seconds: float) -> Iterator[Row]:
    net, x = made(case, device)
    step = mf.capture(steps.pure_step(net, mf.mgda()))
    calls = {
        "plain with SGD": steps.plain_with_sgd(copy.deepcopy(net), x),
        "captured": steps.repeated(step.update, step.init(mf.parameters(net), x), x),
    }
    yield from ratios(case.what, take(calls, device, seconds), "plain with SGD")


ROUTES = (steps.CASES["lenet"], steps.CASES["resnet"], LARGE)


def routes(device: str, tiny: bool) -> Iterator[Row]:
    """The rows of a trunk by T passes and by one batched pass, forward included."""
    for case in ROUTES[: 1 if tiny else None]:
        measure = partial(_routes, case, device, 0.01 if tiny else 0.6)
        yield from guarded(case.what, measure)


def _routes(case: steps.Case, device: str, seconds: float) -> Iterator[Row]:
    net, x = made(case, device)
    leaves = list(net.trunk.parameters())

    def plain() -> object:
        return grad(torch.stack(net(x)).mean(), leaves)

    def passes() -> object:
        return [grad(loss, leaves, retain_graph=True) for loss in net(x)]

    def batched() -> object:
        losses = torch.stack(net(x))
        return grad(losses, leaves, torch.eye(len(losses), device=device), is_grads_batched=True)

    def vmapped() -> object:
        losses = torch.stack(net(x))
        units = torch.eye(len(losses), device=device)
        return vmap(lambda unit: grad(losses, leaves, unit, retain_graph=True))(units)

    calls = {"plain": plain, "T passes": passes, "is_grads_batched": batched}
    with tf32(case is LARGE):
        yield from ratios(case.what, take(calls | {"torch.func.vmap": vmapped}, device, seconds))


class Autocast(nn.Module):
    """A network's products in bfloat16."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x).float()


def _language(make: Callable[[], nn.Module], vocabulary: int, count: int, length: int) -> Callable:
    return lambda: (make(), torch.randint(vocabulary, (count, length + 1)))


def _gpt(rank: int = 0, *, tiny: bool = False) -> Callable:
    layers, width, length, heads, words = (1, 32, 8, 2, 50) if tiny else (12, 768, 512, 12, 50_257)
    return _language(
        lambda: Autocast(weightings.GPT(layers, width, length, rank, heads, words)),
        words, 4 if tiny else 16, length,
    )  # fmt: skip


def _llama(*, tiny: bool = False) -> Callable:
    size = Size(1, 32, 48, 4, 2, 50) if tiny else Size()
    return _language(
        lambda: Llama(size).bfloat16(), size.vocabulary, 2 if tiny else 8, 8 if tiny else 512
    )


SMALL = weightings.CASES["mlp"]._replace(bars={64: 3.5})
CAPTURED_LIMIT, MEMORY_LIMIT = 1.0, 1.5  # plain steps, and of a plain step's peak


def _cells(tiny: bool) -> list[tuple[weightings.Case, int, str]]:
    """Networks with bars in plain steps, K, and the peer that 80 GB do not hold."""
    gpt = weightings.Case(_gpt(tiny=tiny), "GPT-2 small, 163 M, 16 × 512 tokens, bf16 autocast", {})
    lora = weightings.Case(_gpt(8, tiny=tiny), f"{gpt.what}, LoRA 8", {})
    what = "Llama-shaped, 1.1 B in bf16, 8 × 512 tokens"
    llama = weightings.Case(_llama(tiny=tiny), what, dict.fromkeys((2, 4, 16), 2.3))
    if tiny:
        return [(SMALL, 4, ""), (llama, 2, ""), (lora, 2, "TorchJD"), (gpt, 2, weightings.LOOP)]
    return [
        (SMALL, 64, ""),
        (llama, 2, ""),
        (gpt, 16, "TorchJD"),
        (gpt, 64, weightings.LOOP),
        (lora, 16, "TorchJD"),
        (llama, 16, weightings.LOOP),
        (llama, 4, ""),
    ]


def weighting_times(device: str, tiny: bool) -> Iterator[Row]:
    """Gramian and combination of K weightings of samples, in plain steps."""
    seconds = 0.01 if tiny else 1.0
    for case, tasks, without in _cells(tiny):
        label = f"{case.what}, K = {tasks}"
        yield from guarded(label, partial(_weighting, case, tasks, without, device, seconds))
        if case is SMALL:
            captured = partial(_captured_weighting, label, tasks, device, seconds)
            yield from guarded(f"{label}: captured", captured, CAPTURED_LIMIT)


def _weighting(
    case: weightings.Case, tasks: int, without: str, device: str, seconds: float
) -> Iterator[Row]:
    net, x = made(case, device)
    calls, bar = weightings.contenders(net, x, tasks), case.bars.get(tasks)
    calls = {name: call for name, call in calls.items() if name not in ("mf.balance", without)}
    done = take(calls, device, seconds, least=3)
    label = f"{case.what}, K = {tasks}"
    yield from ratios(label, done, targets={} if bar is None else {LIVE: bar})
    if case.what.startswith("Llama"):
        yield from over(label, done, LIVE, "plain", (bar, MEMORY_LIMIT))


def _captured_weighting(label: str, tasks: int, device: str, seconds: float) -> Iterator[Row]:
    net, x = made(SMALL, device)
    step = mf.capture(weightings.pure_step(net, torch.randn(tasks, len(x), device=device)))
    params = mf.parameters(net)
    state = step.init(params, x)

    def captured() -> None:
        nonlocal state
        _, state, _ = step.update(params, x, state)

    def plain() -> None:
        net.zero_grad()
        net(x).mean().backward()

    done = take({"plain": plain, "captured": captured}, device, seconds)
    yield from list(ratios(label, done, targets={"captured": CAPTURED_LIMIT}))[1:]


MLP = steps.CASES["mlp"]
BATCHES = 3
RULES = {"mgda": mf.mgda(), "cagrad": mf.cagrad(0.4), "mean": mf.mean(), "pcgrad": mf.pcgrad()}
ON_THE_HOST = "-cvx"  # cvxpy's rules solve on the host by construction
LANES_LIMIT = 0.9  # µs a run and step, of 4,096


def rules(tiny: bool) -> dict[str, Callable[[], mf.Rule]]:
    """The rules that the tests go through, by name."""
    from tests.support.registry import RULES  # next to this folder in a checkout

    names = ["mean", "mgda", "pcgrad", "gradnorm"] if tiny else list(RULES)
    return {name: RULES[name].make for name in names if not name.endswith(ON_THE_HOST)}


def capture(device: str, tiny: bool) -> Iterator[Row]:
    """Every rule's captured step: as fast as what, equal to eager over changing batches or not."""
    net, x = made(MLP, device)
    seconds = 0.005 if tiny else 0.03
    plain = take({"plain": steps.plain_with_sgd(net, x)}, device, 10 * seconds)
    yield from ratios(MLP.what, plain)
    unit = plain["plain"]
    assert isinstance(unit, Taken)
    failing = []
    for name, make in rules(tiny).items():
        measure = partial(_capture, name, make, (net, x), device, seconds, unit)
        for row in guarded(name, measure):
            if row["value"] is None:
                failing.append(row["case"])
            yield row
    note = f"of {len(rules(tiny))}" + (f": {', '.join(failing)}" if failing else "")
    what = "configurations not captured, or not equal to eager"
    yield found(what, float(len(failing)), "", note, 0.0)


def _capture(
    name: str,
    make: Callable[[], mf.Rule],
    problem: tuple[Any, Tensor],
    device: str,
    seconds: float,
    unit: Taken,
) -> Iterator[Row]:
    net, x = problem
    batches = [x * (1 + 0.1 * n) + 0.1 * n for n in range(BATCHES)]
    step = steps.pure_step(net, make())
    program = mf.capture(step)
    start = step.init(mf.parameters(net), x)
    eager = _states(step.update, start, batches)  # warm: what compiles also waits
    reads = syncs(lambda: step.update(start, x)) if device == "cuda" else None
    captured = _states(program.update, start, batches)
    apart = [n for n in range(BATCHES) if not _same(eager[n], captured[n])]
    done = take({"captured": steps.repeated(program.update, start, x)}, device, seconds)
    taken = done["captured"]
    if isinstance(taken, Exception):
        raise taken
    note = f"{1e3 * taken.seconds:.3g} ms"
    note += "" if reads is None else f", {reads} host reads an eager step"
    if apart:
        said = f"{FAILED} differs from eager after batch {apart[0] + 1}; {note}"
        yield found(name, None, "", said)
    else:
        note += f", equal to eager bit for bit over {BATCHES} batches"
        yield found(name, taken.seconds / unit.seconds, "eager plain steps", note)


def _states(update: Callable[..., Any], state: Any, batches: list[Tensor]) -> list[Any]:
    """Copies of the state and the step's report after every batch."""
    kept = []
    state = tree_map_only(Tensor, Tensor.clone, state)
    for batch in batches:
        state, info = update(state, batch)
        kept.append(tree_map_only(Tensor, Tensor.clone, (state, info)))
    return kept


def _same(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())
        for a, b in pairs
        if isinstance(a, Tensor)
    )


def syncs(call: Callable[[], object]) -> int:
    """How often a call waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(each.message) and "called" in str(each.message) for each in said)


def lanes(device: str, tiny: bool) -> Iterator[Row]:
    """Whole trainings side by side in one captured program."""
    sizes = (1, 4) if tiny else (1, 64, 1024, 4096)
    cells = [("mgda", runs) for runs in sizes]
    cells += [(rule, sizes[-1]) for rule in ("cagrad", "pcgrad")]
    for rule, runs in cells:
        label = f"{rule}, Adam, {runs:,} runs"
        target = LANES_LIMIT if runs == 4096 else None
        times = 3 if tiny else 100
        run = partial(_lanes, rule, runs, device, times, target)
        yield from guarded(label, run, target)


def _lanes(rule: str, runs: int, device: str, times: int, target: float | None) -> Iterator[Row]:
    net, x = made(MLP, device)
    step = steps.pure_step(net, RULES[rule], mf.adam(1e-3))
    program = mf.capture(mf.Step(vmap(step.init), vmap(step.update)))
    draw = torch.Generator(device).manual_seed(0)

    def spread(leaf: Tensor) -> Tensor:
        noise = torch.randn(runs, *leaf.shape, generator=draw, device=device)
        return leaf + 0.01 * noise

    params = {name: spread(leaf) for name, leaf in mf.parameters(net).items()}
    batch, keys = spread(x), torch.arange(runs, device=device)
    call = steps.repeated(program.update, program.init(params, batch, keys), batch)
    _, memory = with_memory(lambda: (call(), call()), device)
    call()
    seconds = sorted(timed(call, "wall", device, times) for _ in range(5))[2]
    note = f"{1e3 * seconds:.3g} ms a step, {size(memory)}"
    label = f"{rule}, Adam, {runs:,} runs"
    yield found(label, 1e6 * seconds / runs, "µs a run and step", note, target)


def compiler(device: str, tiny: bool) -> Iterator[Row]:
    """A step under `torch.compile`, by its modes, next to the eager and the captured one."""
    modes = ("default",) if tiny else ("default", "reduce-overhead")
    for rule in ("mean",) if tiny else ("mgda", "mean", "pcgrad"):
        for mode in modes:
            yield from guarded(f"{rule}, {mode}", partial(_compiled, rule, mode, device, tiny))


def _compiled(rule: str, mode: str, device: str, tiny: bool) -> Iterator[Row]:
    torch.compiler.reset()
    net, x = made(MLP, device)
    step = steps.pure_step(net, RULES[rule])
    state = step.init(mf.parameters(net), x)
    options: dict[str, Any] = {"backend": "eager"} if tiny else {"mode": mode}
    update = torch.compile(step.update, fullgraph=True, **options)

    def apart(state: Any, x: Tensor) -> Any:  # its graphs write over what they returned
        return update(tree_map_only(Tensor, Tensor.clone, state), x)

    compiled = steps.repeated(apart if mode == "reduce-overhead" else update, state, x)
    first = timed(compiled, "wall", device)
    calls = {
        "plain with SGD": steps.plain_with_sgd(made(MLP, device)[0], x),
        "eager": steps.repeated(step.update, state, x),
        "compiled": compiled,
    }
    done = take(calls, device, 0.01 if tiny else 0.5)
    for row in ratios(f"{rule}, {mode}", done, "plain with SGD"):
        said = f", compiled in {first:.0f} s" if row["case"].endswith("compiled") else ""
        yield row | {"note": row["note"] + said}
