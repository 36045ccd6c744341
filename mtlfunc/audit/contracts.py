"""How a rule computes: what every rule of this library owes, whatever its mathematics.

Three of these cannot be seen in one instance under a vmap (is it pure, does its state survive
being saved, is the vmap the loop); they look at the rule from outside and give a Finding. The
others are checks like those of `properties`.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from ..types import Geometry, Rule
from .cases import Case, independent
from .evaluate import Evaluate, Extra, Outcome, describe_error, geometry, quiet, start, step
from .properties import Property, apart, direction, nudge, outcomes, size, vector

SAME = 1e-7
"""vmapped == loop: a batched product may round differently, an exact solver on top of it then by
the root of that.
"""

FLOAT32_ERROR = 1e-3
"""float32: the root of its machine epsilon, 3e-4, is what an exact solver loses near a
Pareto-stationary point.
"""


# ---- checks of one instance --------------------------------------------------------------------


def valid(evaluate: Evaluate, rows: Tensor, losses: Tensor) -> Outcome:
    """Weights are a finite tensor [task] in the Gramian's dtype, without an exception, at every
    update.
    """
    w = evaluate(rows, losses, strict=True)
    return outcomes((torch.where(w.isfinite().all(-1), 0.0, torch.inf), w, w))


def describe_valid(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return f"weights are {vector(after)}"


def nan_in_gradients(evaluate: Evaluate, rows: Tensor, losses: Tensor) -> Outcome:
    """NaN in one task's gradient raises, or gives NaN weights at some update: nothing plausible."""
    return poisoned(evaluate, rows.where(torch.arange(len(rows))[:, None] > 0, torch.nan), losses)


def nan_in_losses(evaluate: Evaluate, rows: Tensor, losses: Tensor) -> Outcome:
    """NaN in one loss raises, or gives NaN weights at some update, of a rule that reads losses."""
    return poisoned(evaluate, rows, losses.where(torch.arange(len(rows)) > 0, torch.nan))


def nan_policy(evaluate: Evaluate, rows: Tensor, losses: Tensor) -> Outcome:
    return Outcome(
        *(
            torch.cat(pair)
            for pair in zip(
                nan_in_gradients(evaluate, rows, losses),
                nan_in_losses(evaluate, rows, losses),
                strict=True,
            )
        )
    )


def poisoned(evaluate: Evaluate, rows: Tensor, losses: Tensor) -> Outcome:
    try:
        w = evaluate(rows, losses)
    except Exception:  # just what it should do
        w = torch.full_like(losses, torch.nan)
    return outcomes((torch.where(w.isfinite().all(), torch.inf, 0.0).expand(len(losses)), w, w))


def describe_nan(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return (
        f"weights are {vector(after)} although the {('gradient', 'loss')[variant]} of task 1 is NaN"
    )


def describe_nan_loss(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return describe_nan(count, 1, before, after)


def absent(evaluate: Evaluate, rows: Tensor, losses: Tensor) -> Outcome:
    """A task absent from the batch gets weight 0 and the others what they get alone; with nobody
    present all weights are 0.

    A rule that raises, or gives NaN, where a task is absent refuses: no case.
    """
    return without(evaluate, rows, losses, alone=True)


def absent_zero(evaluate: Evaluate, rows: Tensor, losses: Tensor) -> Outcome:
    """The same for a rule that draws: others draw other numbers alone, so only the zeros are
    tested.
    """
    return without(evaluate, rows, losses, alone=False)


def without(evaluate: Evaluate, rows: Tensor, losses: Tensor, *, alone: bool) -> Outcome:
    count = len(rows)
    everyone = torch.arange(count)

    def one(missing: int) -> tuple[Tensor, Tensor, Tensor]:
        present = everyone != missing if missing < count else torch.zeros(count, dtype=torch.bool)
        try:
            w = evaluate(rows, losses, present=present)
        except Exception:  # it refuses
            w = torch.full_like(losses, torch.nan)
        violation, expected = (w.abs() * ~present).amax(-1), torch.zeros_like(w)
        if alone and missing < count:
            rest = [i for i in range(count) if i != missing]
            v = evaluate(rows[rest], losses[:, rest])
            expected = v.new_zeros(w.shape).index_copy(-1, torch.tensor(rest), v)
            kept = w * present
            violation = torch.maximum(
                violation,
                apart(
                    direction(rows, kept),
                    direction(rows, expected),
                    size(rows, kept),
                    size(rows, expected),
                ),
            )
        return violation, expected, w

    violation, before, after = (
        torch.stack(x)
        for x in zip(*(one(missing) for missing in sorted({0, count - 1, count})), strict=True)
    )
    refused = after.isnan().any(-1)
    return Outcome(
        torch.where(refused.all(), -1.0, violation.where(~refused, torch.inf)), before, after
    )


def describe_absent(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    if variant == len({0, count - 1, count}) - 1:
        return f"weights are {vector(after)} with no task present"
    return (
        f"weights are {vector(after)} with task {sorted({0, count - 1, count})[variant] + 1} "
        f"absent; alone the others have {vector(before)}"
    )


def describe_absent_zero(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return describe_absent(count, variant, before, after).partition(";")[0]


def float32(evaluate: Evaluate, rows: Tensor, losses: Tensor) -> Outcome:
    """A float32 Gramian gives finite float32 weights, whose direction is float64's to 1e-3.

    Where the gradients are linearly independent, and float64's own direction does not change when
    they move by as little as float32 resolves.
    """
    w, v = evaluate(rows, losses), evaluate(rows.float(), losses.float(), strict=True).to(rows)
    d, eps = direction(rows, w), 4 * torch.finfo(torch.float32).eps
    near = [rows + sign * eps * nudge(rows, 0) for sign in (1, -1)]
    moved = [
        apart(direction(x, evaluate(x, losses + eps * nudge(losses, 0))), d, size(rows, w))
        for x in near
    ]
    violation, before, after = outcomes(
        (apart(direction(rows, v), d, size(rows, v), size(rows, w)), w, v)
    )
    return Outcome(
        torch.where(torch.stack(moved).amax() > FLOAT32_ERROR / 10, -1.0, violation), before, after
    )


def describe_float32(count: int, variant: int, before: Tensor, after: Tensor) -> str:
    return f"weights {vector(before)} in float64 are {vector(after)} in float32"


# ---- the rule from outside ---------------------------------------------------------------------


class Finding(NamedTuple):
    """What came out: over how many instances, and what was wrong, where."""

    instances: int
    seen: str = ""  # empty: nothing
    case: Case | None = None


def pure(rule: Rule, cases: list[Case], extra: Extra | None) -> tuple[Finding, bool]:
    """The same Gramian, losses and state give the same weights and state; inputs stay as they were,
    and so does torch's global generator.

    Returns:
        the finding, and whether answers repeat: without that nothing else can be tested.
    """
    first: dict[int, Tensor] = {}
    tested, found, repeats = 0, Finding(0), True

    def worse(seen: str, case: Case) -> None:
        nonlocal found
        if not found.seen:
            found = Finding(0, seen, case)

    with quiet():
        for i, case in [*enumerate(cases), *reversed([*enumerate(cases)])]:
            generator = torch.get_rng_state()
            try:
                state = start(rule, case.losses[0])
                kept = []
                for now in case.losses.unbind(0):
                    seen = geometry(case.jacobian, now, extra)
                    before = copied((seen, state))
                    weights, following = step(rule, seen, state)
                    if not same(before, (seen, state)):
                        worse(
                            "the rule changes "
                            + ", ".join(changed(before, (seen, state)))
                            + " in place",
                            case,
                        )
                    again, after = step(rule, Geometry(*before[0]), before[1])
                    if not same((weights, following), (again, after)):
                        repeats = False
                    kept.append(weights.detach().clone())
                    state = following
                answer = torch.stack(kept)
                if i in first and not same(first[i], answer):
                    repeats = False
                if not torch.equal(generator, torch.get_rng_state()):
                    worse(
                        "the rule draws from torch's global generator; numbers come from the key "
                        "that init gets (see mtlfunc.random)",
                        case,
                    )
                elif not repeats:
                    worse(
                        "the same Gramian, losses and state give other weights the second time: "
                        "something is remembered outside the state",
                        case,
                    )
                first.setdefault(i, answer)
                tested += 1
            except Exception:  # that it raises is for valid weights to say
                continue
    return found._replace(instances=tested), repeats


def copied(tree: Any) -> Any:
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, tree)


def same(one: Any, other: Any) -> bool:
    """Bit by bit; NaN is NaN."""
    (a, shape), (b, other_shape) = tree_flatten(one), tree_flatten(other)
    return shape == other_shape and all(
        (
            x.shape == y.shape
            and x.dtype == y.dtype
            and bool(torch.isclose(x, y, 0, 0, equal_nan=True).all())
        )
        if isinstance(x, Tensor)
        else x is y or x == y
        for x, y in zip(a, b, strict=True)
    )


def changed(before: Any, after: Any) -> list[str]:
    fields = [
        f"the {name}"
        for name, x, y in zip(Geometry._fields, before[0], after[0], strict=True)
        if not same(x, y)
    ]
    return fields + ["its state"] * (not same(before[1], after[1]))


def resumes(rule: Rule, cases: list[Case], extra: Extra | None) -> Finding | None:
    """The state is made of tensors alone, keeps its structure, moves on where it holds a key, and
    resumes bit by bit after torch.save and torch.load.

    Returns:
        None for a rule without state.
    """
    tested, any_state = 0, False
    with quiet():
        for case in cases:
            try:
                state = start(rule, case.losses[0])
                any_state |= bool(tree_leaves(state))
                seen = geometry(case.jacobian, case.losses[0], extra)
                _, following = step(rule, seen, state)
            except Exception:
                continue
            any_state |= bool(tree_leaves(following))
            wrong = misfit(rule, seen, state, following) or reload(rule, case, following, extra)
            tested += 1
            if wrong:
                return Finding(tested, wrong, case)
    return Finding(tested) if any_state else None


def misfit(rule: Rule, seen: Geometry, state: Any, following: Any) -> str:
    """What keeps this state from being carried on; empty if nothing does."""
    for leaf in tree_leaves((state, following)):
        if not isinstance(leaf, Tensor):
            return (
                f"the state holds a {type(leaf).__name__}; only tensors can be batched, "
                "compiled and saved"
            )
    (before, shape), (after, other) = tree_flatten(state), tree_flatten(following)
    if shape != other or any(
        x.shape != y.shape or x.dtype != y.dtype for x, y in zip(before, after, strict=True)
    ):
        return f"the state is {sketch(state)} after init, but {sketch(following)} after an update"
    keys = [i for i, leaf in enumerate(before) if leaf.dtype == torch.int64 and leaf.ndim == 0]
    if keys and all(torch.equal(before[i], after[i]) for i in keys):
        elsewhere = tree_map(
            lambda leaf: leaf + 1 if leaf.dtype == torch.int64 and leaf.ndim == 0 else leaf, state
        )
        try:
            drawn = not same(step(rule, seen, elsewhere)[0], step(rule, seen, state)[0])
        except Exception:  # an index, not a key
            return ""
        if drawn:
            return (
                "weights depend on a key in the state, which an update leaves as it is: every "
                "step draws the same numbers"
            )
    return ""


def sketch(state: Any) -> str:
    """A state's structure in one line."""
    if isinstance(state, Tensor):
        return f"{str(state.dtype).removeprefix('torch.')}{list(state.shape)}"
    if isinstance(state, dict):
        return "{" + ", ".join(f"{name}: {sketch(x)}" for name, x in state.items()) + "}"
    if isinstance(state, tuple | list):
        return "(" + ", ".join(sketch(x) for x in state) + ")"
    return type(state).__name__


def reload(rule: Rule, case: Case, state: Any, extra: Extra | None) -> str:
    """Saves and loads a state and goes on from both; what is wrong with that, if anything."""

    def onwards(state: Any) -> list[Tensor]:
        kept = []
        for now in case.losses.unbind(0):
            weights, state = step(rule, geometry(case.jacobian, now, extra), state)
            kept.append(weights)
        return kept

    try:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        with torch.serialization.safe_globals(list(named_tuples(state))):
            loaded = torch.load(file, weights_only=True)
    except Exception as error:
        return f"the state cannot be saved and loaded: {describe_error(error)}"
    try:
        whole = onwards(state)
    except Exception as error:
        return f"the update after the first one {describe_error(error)}"
    try:
        return (
            ""
            if same(whole, onwards(loaded))
            else "weights after loading a saved state differ from those without the interruption"
        )
    except Exception as error:
        return f"the update after loading a saved state {describe_error(error)}"


def named_tuples(state: Any) -> set[Any]:
    found = {type(state)} if hasattr(state, "_fields") else set()
    children = (
        state.values()
        if isinstance(state, dict)
        else state
        if isinstance(state, tuple | list)
        else ()
    )
    return found.union(*(named_tuples(child) for child in children))


def batched(evaluate: Evaluate, pools: dict[int, Case]) -> tuple[Finding, bool]:
    """A vmap over Jacobians, losses and keys gives the weights of a loop.

    Args:
        `pools`: a batch of instances that are valid one by one, for every T.

    Returns:
        the finding, and whether answers under vmap can be used.
    """
    tested = 0
    with quiet():
        for cases in pools.values():
            keys = torch.arange(len(cases.losses))
            try:
                loop = torch.stack([evaluate(*case) for case in zip(*cases, keys, strict=True)])
            except Exception:  # valid with key 0 and not with another
                continue
            try:
                together = vmap(evaluate)(*cases, keys)
            except Exception as error:
                why = (
                    "a Python branch on a value, .item(), NumPy or a write into a new tensor "
                    "cannot be batched"
                )
                return Finding(
                    tested + 1,
                    f"under torch.func.vmap it {describe_error(error)} ({why})",
                    at(cases, 0),
                ), False
            tested += len(keys)
            far = apart(
                direction(cases.jacobian, together),
                direction(cases.jacobian, loop),
                size_of(cases, together),
                size_of(cases, loop),
            )
            wrong = (far.nan_to_num(torch.inf) > SAME).any(-1)
            if bool(wrong.any()):
                i = int(wrong.nonzero()[0])
                return Finding(
                    tested,
                    f"weights are {vector(together[i, 0])} under vmap, {vector(loop[i, 0])} in a "
                    f"loop (key {i})",
                    at(cases, i),
                ), False
    return Finding(tested), tested > 0


def size_of(cases: Case, weights: Tensor) -> Tensor:
    return (weights.abs() @ torch.linalg.vector_norm(cases.jacobian, dim=-1)[..., None])[..., 0]


def at(cases: Case, i: int) -> Case:
    return Case(*(x[i] for x in cases))


VALID = Property("valid weights", valid, describe_valid, everything=True, contract=True)
FLOAT32 = Property(
    "float32",
    float32,
    describe_float32,
    independent,
    ("gaussian",),
    tolerance=FLOAT32_ERROR,
    contract=True,
)


def missing(draws: bool) -> Property:
    """For a rule that draws random numbers, or one that does not."""
    check, describe = (absent_zero, describe_absent_zero) if draws else (absent, describe_absent)
    return Property("absent tasks", check, describe, tasks=(2, 3, 5), contract=True)


def nan(gramian: bool, losses: bool) -> Property:
    """For a rule that reads the one, the other or both."""
    check = nan_policy if gramian and losses else nan_in_gradients if gramian else nan_in_losses
    return Property(
        "NaN", check, describe_nan if gramian else describe_nan_loss, tasks=(2, 3), contract=True
    )
