"""Parts of a device's benchmark that record or compile: every rule, lanes, the compiler."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map_only

import mtlfunc as mf
from experiments.benchmarks import steps
from experiments.benchmarks.gpu_cases import FAILED, Taken, found, guarded, ratios, size, take
from experiments.benchmarks.gpu_eager import made
from experiments.benchmarks.measuring import timed, with_memory
from experiments.benchmarks.record import Row

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
    done = take(
        {"captured": steps.repeated(program.update, start, x)}, device, seconds, count=False
    )
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
            label = f"{rule}, {mode}"
            yield from guarded(label, lambda r=rule, m=mode: _compiled(r, m, device, tiny))


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
    done = take(calls, device, 0.01 if tiny else 0.5, count=False)
    for row in ratios(f"{rule}, {mode}", done, "plain with SGD"):
        said = f", compiled in {first:.0f} s" if row["case"].endswith("compiled") else ""
        yield row | {"note": row["note"] + said}
