"""Contracts: how a rule computes, whatever its mathematics.

First checks of one instance; then what one instance under a vmap cannot show: the rule is pure, its
state can be saved, its vmap equals its loop.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ..core.internals import tree_flatten, tree_leaves, tree_map
from ..testing.integers import integers, pick
from ..testing.judge import attempt, describe_error, global_random, quiet
from ..types import Geometry
from . import instances
from .harness import EVERY, MANY, Finding, Harness, Inapplicable, Weigh, same, usual
from .instances import SMALL, Case, independent
from .properties import (
    SCALES,
    SEVERAL,
    Check,
    Compared,
    Instance,
    Outcome,
    chosen_tasks,
    compare,
    distance,
    outcomes,
    perturbation,
    scaled,
    size,
    told_apart,
    vector,
    weigh_all,
)
from .search import search

# near a Pareto-stationary point an exact solver loses the root of float32's machine epsilon, 3e-4
FLOAT32_ERROR = 1e-3
# vmapped == loop: a batched product may round differently, an exact solver by the root of that
SAME = 1e-7

REMEMBERS = (
    "the same Gramian, losses and state give other weights the second time: something is "
    "remembered outside the state, or drawn without the key that init gets"
)
GLOBAL = (
    "the rule draws from a global generator, or seeds it; numbers come from the key that init gets "
    "(see mtlfunc.random)"
)
UNMOVED = "no update changed the state that init returns: return the new one, or () for none"
BATCHES = (1, 2, 3, 4, 5, 64)  # instances in one vmap, each number tried with two and three tasks


def require_valid(weigh: Weigh, x: Instance) -> Outcome:
    """Weights are a finite tensor [task] in the Gramian's dtype at every update, no exception."""
    w = weigh(x.rows, x.losses, strict=True)
    return outcomes((torch.where(w.isfinite().all(-1), 0.0, torch.inf), w, w))


def altered_tasks(count: int) -> list[int]:
    """The tasks that become NaN, low or absent, one at a time: all, or of many some."""
    return list(range(count)) if count <= 5 else chosen_tasks(count)


def check_nan(harness: Harness) -> Finding:
    """NaN in a gradient or loss that the rule reads raises, or gives NaN weights at some update."""
    gramian, losses = harness.reads_gramian, harness.reads_losses
    if not gramian and not losses:
        raise Inapplicable("weights depend on neither gradients nor losses")

    def run(weigh: Weigh, x: Instance) -> Outcome:
        tasks, task = altered_tasks(len(x.rows)), torch.arange(len(x.rows))
        nan = torch.nan
        in_rows = [(x.rows.where(task[:, None] != t, nan), x.losses) for t in tasks]
        in_losses = [(x.rows, x.losses.where(task != t, nan)) for t in tasks]
        found = weigh_all(weigh, in_rows * gramian + in_losses * losses, refuse=True)
        wrong = (torch.where(w.isfinite().all(), torch.inf, 0.0).expand(len(w)) for _, w in found)
        return outcomes(*((far, w, w) for far, (_, w) in zip(wrong, found, strict=True)))

    def sentences(count: int) -> list[str]:
        return [
            f"weights are {{after}} although the {what} of task {t} is NaN"
            for what in ("gradient",) * gramian + ("loss",) * losses
            for t in altered_tasks(count)
        ]

    check = Check("NaN", run, sentences, tasks=SEVERAL, most=40, contract=True, large=True)
    return search(harness, check)


def low_losses(count: int) -> list[list[float]]:
    """Losses 2, but 0 or -1 for one task or for all."""
    single = [
        [x if t == i else 2.0 for t in range(count)]
        for i in altered_tasks(count)
        for x in (0.0, -1.0)
    ]
    return single + [[x] * count for x in (0.0, -1.0)]


def check_low_losses(harness: Harness) -> Finding:
    """Losses of 0 or below raise, give only NaN in a vmap, or weights that are finite.

    Outside a transform, where losses can be read, they raise rather than give NaN. Of a rule whose
    weights are otherwise all >= 0 none turns negative, which would raise the loss of its task.
    """
    if not harness.reads_losses:
        raise Inapplicable("weights do not depend on losses")
    tested = 0
    with quiet():
        for case in harness.few():
            for losses in low_losses(len(case.jacobian)) if len(case.jacobian) <= SMALL else ():
                given = torch.tensor(losses).to(case.losses).expand_as(case.losses)
                w = attempt(harness.weigh, case.jacobian, given)
                tested += 1
                if w is not None and bool(w.isnan().any()):
                    seen = f"weights are {vector(w[-1])} where the losses are {vector(given[0])}"
                    return Finding(tested, f"{seen}, without an error", Case(case.jacobian, given))

    def falls_below(w: Tensor) -> Tensor:
        return (w < -1e-9 * w.abs().sum(-1, keepdim=True)).any(-1)

    valid = [pool.weights[pool.valid] for pool in map(harness.pool, (1, 2, 3))]
    if not any(map(len, valid)):
        raise Inapplicable("no instance with valid weights")
    signed = not any(bool(falls_below(w).any()) for w in valid)

    def run(weigh: Weigh, x: Instance) -> Outcome:
        def judged(given: Tensor, w: Tensor) -> Compared:
            wrong = ~w.isfinite().all(-1)
            if signed:
                wrong = wrong | falls_below(w)
            # All NaN at an update is a refusal, also from then on.
            refusal = w.isnan().all(-1).cumsum(0) > 0
            return torch.where(refusal, -1.0, torch.where(wrong, torch.inf, 0.0)), given, w

        values = torch.tensor(low_losses(len(x.rows)), dtype=x.losses.dtype)
        given = values[:, None].expand(-1, *x.losses.shape)
        found = weigh_all(weigh, [(x.rows, losses) for losses in given], refuse=True)
        return outcomes(*(judged(y, w) for y, (_, w) in zip(given, found, strict=True)))

    text = "weights are {after} where the losses are {before}"
    try:
        return search(harness, Check("losses of 0 or below", run, [text], most=40, contract=True))
    except Inapplicable:
        raise Inapplicable("the rule refuses losses of 0 and below") from None


def absences(count: int) -> list[list[int]]:
    """Who is absent: each task alone, two of three or more, all."""
    single = [[t] for t in altered_tasks(count)]
    return [*single, *([[0, count - 1]] if count > 2 else []), list(range(count))]


def check_absent(harness: Harness) -> Finding:
    """Absent tasks get weight 0, the others what they get alone; with no task present all are 0.

    Only the zeros if the rule draws random numbers (alone, the others draw other numbers), and at a
    T of which it does not take one or two less. The check does not apply if it refuses, outside a
    vmap, that one is absent: by a ValueError or NotImplementedError; other errors are defects.
    """
    takes, tasks = harness.takes, tuple(filter(harness.takes, SEVERAL))
    counts = (*tasks, *harness.between)
    zeros = {k: harness.draws or not all(map(takes, {k - 1, max(k - 2, 1)})) for k in counts}
    if not tasks:
        raise Inapplicable("no instance with valid weights that it speaks of")
    pool = harness.pool(tasks[:2][-1])
    first = pool.cases.at(int(pool.valid.int().argmax()))
    try:
        harness.weigh(*first, present=torch.arange(len(first.jacobian)) > 0)
    except (ValueError, NotImplementedError) as error:
        why = "the rule refuses batches in which a task is absent"
        raise Inapplicable(f"{why}: {describe_error(error)}") from error
    except Exception as error:  # whatever a rule may raise
        return Finding(1, f"{describe_error(error)} with task 0 absent", first)

    def run(weigh: Weigh, x: Instance) -> Outcome:
        every = range(len(x.rows))
        rests = [[i for i in every if i not in missing] for missing in absences(len(x.rows))]
        here = [torch.tensor([i in rest for i in every]) for rest in rests]
        found = weigh_all(weigh, [(x.rows, x.losses, present) for present in here], "present")
        expected = [torch.zeros_like(w) for _, w in found]
        if not zeros[len(x.rows)]:
            alone = weigh_all(weigh, [(x.rows[rest], x.losses[:, rest]) for rest in rests[:-1]])
            for i, (_, v) in enumerate(alone):
                expected[i] = expected[i].index_copy(-1, torch.tensor(rests[i]), v)

        def judged(present: Tensor, given: tuple[Tensor, Tensor], v: Tensor) -> Compared:
            w = given[1]
            violation, kept = (w.abs() * ~present).amax(-1), w * present
            sizes = size(x.rows, kept, x.unit), size(x.rows, v, x.unit)
            far = distance(kept @ x.rows, v @ x.rows, *sizes)
            worst = violation if zeros[len(x.rows)] else torch.maximum(violation, far)
            return worst, v, w

        return outcomes(*(judged(*each) for each in zip(here, found, expected, strict=True)))

    def sentences(count: int) -> list[str]:
        others = "" if zeros[count] else "; alone the others have {before}"
        said = []
        for missing in absences(count):
            who = " and ".join(str(t) for t in missing)
            tasks = f"task{'s' * (len(missing) > 1)} {who}"
            said.append(f"weights are {{after}} with {tasks} absent{others}")
        return [*said[:-1], "weights are {after} with no task present"]

    check = Check("absent tasks", run, sentences, tasks=tasks, most=40, contract=True)
    return search(harness, check)


def convert(weigh: Weigh, x: Instance) -> Outcome:
    """A float32 Gramian gives finite float32 weights, whose direction is float64's to 1e-3.

    Linearly independent gradients only, and only if float64's own direction stays when they move by
    as little as float32 resolves.
    """
    v = weigh(x.rows.float(), x.losses.float(), strict=True).to(x.rows)
    eps, unit = 4 * torch.finfo(torch.float32).eps, size(x.rows, x.weights, x.unit)
    losses = x.losses + eps * perturbation(x.losses, 0)
    moves = [(x.rows + sign * eps * perturbation(x.rows, 0), losses) for sign in (1, -1)]
    moved = [distance(w @ rows, x.direction, unit) for rows, w in weigh_all(weigh, moves)]
    unstable = torch.stack(moved).amax() > FLOAT32_ERROR / 10
    violation, before, after = outcomes((compare(x, x.rows, v)[0], x.weights, v))
    return Outcome(torch.where(unstable, -1.0, violation), before, after)


VALID = Check(
    "valid weights", require_valid, ["weights are {after}"], everything=True, contract=True
)
FLOAT32 = Check(
    "float32", convert, ["weights {before} in float64 are {after} in float32"], independent,
    ("gaussian",), tolerance=FLOAT32_ERROR, contract=True, large=True,
)  # fmt: skip


def check_zero_gradients(harness: Harness) -> Finding:
    zeros = {count: torch.zeros(1, count, 1, dtype=torch.float64) for count in EVERY}
    return search(harness, VALID, zeros)


# how much sums of weights of orthonormal gradients grow at most from one number of tasks to the
# next one tested, which is at most twice as many
LEAP = 4.0


def check_many(harness: Harness) -> Finding:
    """Valid weights for many tasks, whose size does not leap from one T to the next."""
    families = ("gaussian", "agreeing", "spread")
    rows = torch.cat([instances.generic(family, MANY, 1) for family in families])
    tested = search(harness, VALID, {MANY: rows})
    if tested.seen:
        return tested
    before = {}
    for count in (*range(4, 17), 31, 32, 33, 63, 64, 65, MANY - 1, MANY, MANY + 1):
        eye = torch.eye(count, dtype=torch.float64)
        case = Case(eye, torch.full((1, count), 2.0, dtype=torch.float64))
        try:
            with quiet():
                total = float(harness.weigh(*case).abs().sum())
        except Exception as error:
            return Finding(tested.instances, describe_error(error), case)
        for fewer, less in before.items():
            if not less / LEAP <= total <= less * LEAP:
                seen = f"the weights of {count} orthonormal gradients add up to {total:.4g}"
                seen += f", those of {fewer} to {less:.4g}"
                return Finding(tested.instances, seen, case)
        before = {count: total}
    return tested


def check_purity(harness: Harness) -> Finding:
    """The same Gramian, losses and state give the same weights, and nothing else happens.

    Global generators and grad mode stay as they were. Every case comes twice, the second
    time in the opposite order. `harness` notes whether answers repeat, and in-place changes.
    """
    cases, first, tested, seen, where = [*enumerate(harness.few())], {}, 0, "", None
    for i, case in [*cases, *reversed(cases)]:
        with quiet(), torch.enable_grad():  # from a state that no rule's own seed leaves
            generators, weights = global_random(tested + 2**31), attempt(harness.weigh, *case)
            moved, recorded = global_random() != generators, torch.is_grad_enabled()
        if weights is None:  # "valid weights" reports it
            continue
        tested, wrong = tested + 1, ""
        if not same(first.setdefault(i, weights.detach().clone()), weights):
            harness.repeats, wrong = False, REMEMBERS
        wrong = GLOBAL if moved else wrong
        if not recorded:
            wrong = "the rule leaves gradients turned off; use torch.no_grad() in a with statement"
        seen, where = (seen, where) if seen or not wrong else (wrong, case)
    return Finding(tested, seen, where)


def check_state(harness: Harness) -> Finding:
    """The state is made of tensors, keeps its structure, and survives torch.save and torch.load.

    Updates change it, its key among others, and a run that goes on from it is the same bit by bit.
    """
    tested, any_state, moved, case = 0, False, False, None
    with quiet():
        for case in harness.few():
            if len(case.jacobian) > SMALL:
                continue
            try:
                state = harness.start(case.losses[0])
                seen = harness.geometry(case.jacobian, case.losses[-1])
                _, following, changed = harness.step(seen, state)
            except Exception:  # "valid weights" reports it
                continue
            any_state |= bool(tree_leaves((state, following)))
            wrong = misfit(harness, seen, state, following) or reload(harness, case, following)
            moved |= bool(changed) or not same(state, following)
            tested += 1
            if wrong:
                return Finding(tested, wrong, case)
    if not any_state:
        raise Inapplicable("it has no state" if tested else "no update returns")
    return Finding(tested, "" if moved else UNMOVED, None if moved else case)


def misfit(harness: Harness, seen: Geometry, state: Any, following: Any) -> str:
    """What keeps this state from being carried on; empty if nothing does."""
    for leaf in tree_leaves((state, following)):
        if not isinstance(leaf, Tensor):
            kind = type(leaf).__name__
            return f"the state holds a {kind}; only tensors can be batched, compiled and saved"
    (before, shape), (after, other) = tree_flatten(state), tree_flatten(following)
    if shape != other or any(
        x.shape != y.shape or x.dtype != y.dtype for x, y in zip(before, after, strict=True)
    ):
        return f"the state is {sketch(state)} after init, but {sketch(following)} after an update"

    def is_key(leaf: Tensor) -> bool:
        return leaf.dtype == torch.int64 and leaf.ndim == 0

    keys = [i for i, leaf in enumerate(before) if is_key(leaf)]
    if keys and all(torch.equal(before[i], after[i]) for i in keys):
        elsewhere = tree_map(lambda leaf: leaf + 1 if is_key(leaf) else leaf, state)
        drawn = [attempt(harness.step, seen, key) for key in (elsewhere, state)]
        # an integer with which a step raises is an index, not a key
        if None not in drawn and not same(drawn[0][0], drawn[1][0]):
            return "an update leaves the state's key as it is: every step draws the same numbers"
    return ""


def sketch(state: Any) -> str:
    """A state's structure in one line: of every tensor its dtype and shape."""
    kinds = tree_map(lambda x: f"{x.dtype}{list(x.shape)}".removeprefix("torch."), state)
    return str(kinds).replace("'", "")


def reload(harness: Harness, case: Case, state: Any) -> str:
    """Saves and loads a state and goes on from both; what is wrong with that, if anything."""

    def go_on(state: Any) -> list[Tensor]:
        kept = []
        for now in case.losses.unbind(0):
            weights, state, _ = harness.step(harness.geometry(case.jacobian, now), state)
            kept.append(weights)
        return kept

    doing = "the state cannot be saved and loaded:"
    try:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)  # our own bytes
        doing = "the update after the first one"
        whole = go_on(state)
        doing = "the update after loading a saved state"
        if same(whole, go_on(loaded)):
            return ""
    except Exception as error:
        return f"{doing} {describe_error(error)}"
    return "weights after loading a saved state differ from those without the interruption"


def check_batching(harness: Harness) -> Finding:
    """A vmap over Jacobians, losses and keys, nested too, gives the weights of a loop.

    Every number of tasks and every size of `BATCHES` comes at least once. `harness` notes whether
    answers under vmap can be used.
    """
    tested = 0
    for count in (*harness.counts, MANY):
        few_tasks = count in (2, 3)
        # both ways for few tasks, for more one after the other, and in batches of 1 to 5
        sizes = [(size, False) for size in BATCHES] + [(4, True)] if few_tasks else []
        sizes = sizes or [(1 + count % 5, count % 2 == 0)]
        largest = max(size for size, _ in sizes) if count <= SMALL else 1
        few = integers(count) if count <= 3 else instances.generic("gaussian", count, largest)
        rows = pick(few, largest)
        cases = harness.ready(rows).at(slice(largest))
        keys = torch.arange(len(cases.losses))
        looked = [i for i in range(len(keys)) if i < 5 or i == len(keys) - 1]
        with quiet():
            loop = {i: attempt(harness.weigh, *cases.at(i), keys[i]) for i in looked}
            loop = {i: w for i, w in loop.items() if w is not None and bool(w.isfinite().all())}
            if not loop:  # "valid weights" reports it
                continue
            unit = usual(cases.jacobian[[*loop]], torch.stack([*loop.values()]))
            for wanted, nested in sizes:
                size = min(wanted, len(keys))
                inner = 2 - size % 2 if nested else 0
                try:
                    found = batch(harness, cases, keys, size, inner)
                except Exception as error:
                    cure = "a Python branch on a value, .item(), NumPy or a write into a new tensor"
                    seen = f"{describe_error(error)} ({cure} cannot be batched)"
                    return Finding(tested + 1, f"under torch.func.vmap it {seen}", cases.at(0))
                for i in (i for i in loop if i < len(found)):
                    x = Instance(*cases.at(i), loop[i], unit)
                    far = compare(x, x.rows, found[i])[0].nan_to_num(torch.inf)
                    if bool((far > SAME).any()):
                        how = "nested vmaps" if nested else f"vmap over {len(found)} instances"
                        mapped, looped = told_apart(found[i][0], loop[i][0])
                        seen = f"weights are {mapped} under {how}, {looped} in a loop (key {i})"
                        return Finding(tested, seen, cases.at(i))
        tested += len(keys)
    harness.vmapped = tested > 0
    return Finding(tested)


def batch(harness: Harness, cases: Case, keys: Tensor, size: int, inner: int) -> Tensor:
    """Weights [case, update, task] of `size` cases: one vmap, or one over vmaps of `inner` each."""
    given: list[Any] = [x[:size] for x in (*cases, keys)]
    if not inner:
        return vmap(harness.weigh)(*given)
    given = [x.unflatten(0, (-1, inner)) for x in given]
    return vmap(vmap(harness.weigh))(*given).flatten(0, 1)


def check_epsilon(harness: Harness) -> Finding:
    """Weights that go with a power of the scale where all gradients grow do so where they shrink.

    If no power gives them to a hundredth where gradients grow, the method itself has a unit.
    """
    name, grown, (rows, losses) = "no absolute epsilon", SCALES[2:], harness.pool(2).cases
    near, far = (harness.answers(Case(s * rows, losses)).abs().sum(-1) for s in grown)
    power = float((far / near).nanmedian().log2().nan_to_num()) / 16  # 2^16 times as long
    # without lengths of 1e-4 and of 0, whose squares are as small as an epsilon
    check = scaled(name, grown, power)._replace(
        tolerance=0.01, families=("gaussian",), where=independent
    )
    if search(harness, check).seen:
        raise Inapplicable("the weights have a unit: no power of the gradients' scale gives them")
    return search(harness, scaled(name, SCALES[:2], power))


Test = Callable[[Harness], Finding]
CONTRACTS: dict[str, Test] = {
    "valid weights": lambda harness: search(harness, VALID),
    "vmapped == loop": check_batching,
    "state round-trip": check_state,
    "purity": check_purity,
    "zero gradients": check_zero_gradients,
    "NaN": check_nan,
    "losses of 0 or below": check_low_losses,
    "T = 128": check_many,
    "float32": lambda harness: search(harness, FLOAT32),
    "absent tasks": check_absent,
    "no absolute epsilon": check_epsilon,
}
"""How a rule computes: a failure is a defect."""
