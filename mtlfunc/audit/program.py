"""The rule as a program: is it pure, does its state survive being saved, is its vmap its loop."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from ..types import Geometry, Rule
from .cases import Case
from .evaluate import Evaluate, Extra, describe_error, geometry, quiet, start, step
from .properties import apart, direction, size, vector

SAME = 1e-7
"""vmapped == loop: a batched product may round differently, an exact solver on top of it then by
the root of that.
"""


REMEMBERS = (
    "the same Gramian, losses and state give other weights the second time: something is "
    "remembered outside the state"
)


class Finding(NamedTuple):
    """What came out: over how many instances, and what was wrong, where."""

    instances: int
    seen: str = ""  # empty: nothing
    case: Case | None = None


class Inconsistent(Exception):
    """An answer did not come again: the rule is not pure, or its vmap is not its loop."""

    def __init__(self, name: str, seen: str, case: Case) -> None:
        super().__init__(seen)
        self.name = name  # of the contract
        self.finding = Finding(0, seen, case)


# ---- purity ------------------------------------------------------------------------------------


def pure(rule: Rule, cases: list[Case], extra: Extra | None) -> tuple[Finding, bool]:
    """The same Gramian, losses and state give the same weights and state, and nothing else happens.

    Inputs stay as they were, and so does torch's global generator. Every case comes twice, the
    second time in the opposite order.

    Returns:
        the finding, and whether answers repeat: without that nothing else can be tested.
    """
    first: dict[int, Tensor] = {}
    found, tested, repeats = "", 0, True
    where: Case | None = None
    with quiet():
        for i, case in [*enumerate(cases), *reversed([*enumerate(cases)])]:
            generator = torch.get_rng_state()
            try:
                answer, again, touched = observed(rule, case, extra)
            except Exception:  # that it raises is for valid weights to say
                continue
            here = ""
            if not torch.equal(generator, torch.get_rng_state()):
                repeats &= again
                here = (
                    "the rule draws from torch's global generator; numbers come from the key "
                    "that init gets (see mtlfunc.random)"
                )
            elif not again or not same(first.get(i, answer), answer):
                repeats = False
                here = REMEMBERS
            here = touched or here
            if here and not found:
                found, where = here, case
            first.setdefault(i, answer)
            tested += 1
    return Finding(tested, found, where), repeats


def observed(rule: Rule, case: Case, extra: Extra | None) -> tuple[Tensor, bool, str]:
    """The weights of all updates, whether each comes again, and which inputs the rule changes."""
    state = start(rule, case.losses[0])
    kept, again, touched = [], True, ""
    for now in case.losses.unbind(0):
        seen = geometry(case.jacobian, now, extra)
        before = copied((seen, state))
        weights, following = step(rule, seen, state)
        if not touched and not same(before, (seen, state)):
            fields = ", ".join(changed(before, (seen, state)))
            touched = f"the rule changes {fields} in place"
        second, after = step(rule, Geometry(*before[0]), before[1])
        again = again and same((weights, following), (second, after))
        kept.append(weights.detach().clone())
        state = following
    return torch.stack(kept), again, touched


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


# ---- state -------------------------------------------------------------------------------------


def resumes(rule: Rule, cases: list[Case], extra: Extra | None) -> Finding | None:
    """The state is made of tensors, keeps its structure, and survives torch.save and torch.load.

    It moves on where it holds a key, and a run that goes on from it is the same bit by bit.

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
        # those that are known already would be forgotten afterwards
        known = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([x for x in named_tuples(state) if x not in known]):
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


# ---- vmap --------------------------------------------------------------------------------------


def batched(evaluate: Evaluate, pools: dict[int, tuple[Case, float]]) -> tuple[Finding, bool]:
    """A vmap over Jacobians, losses and keys, nested too, gives the weights of a loop.

    Args:
        evaluate: the rule.
        pools: instances that are valid one by one, and the unit, for every T.

    Returns:
        the finding, and whether answers under vmap can be used.
    """
    tested = 0
    for cases, unit in pools.values():
        keys = torch.arange(len(cases.losses))
        with quiet():
            try:
                loop = torch.stack([evaluate(*case) for case in zip(*cases, keys, strict=True)])
            except Exception:  # valid with key 0 and not with another
                continue
            # both ways for few tasks, then one after the other
            count = cases.losses.shape[-1]
            for nested in (False, True) if count <= 3 else (count % 2 == 0,):
                try:
                    found = vmapped(evaluate, cases, keys, nested)
                except Exception as error:
                    why = (
                        "a Python branch on a value, .item(), NumPy or a write into a new tensor "
                        "cannot be batched"
                    )
                    seen = f"under torch.func.vmap it {describe_error(error)} ({why})"
                    return Finding(tested + 1, seen, at(cases, 0)), False
                wrong = differs(cases, found, loop, unit)
                if bool(wrong.any()):
                    i = int(wrong.nonzero()[0])
                    how = "nested vmaps" if nested else "vmap"
                    seen = other_answer(found[i], loop[i], how, f"in a loop (key {i})")
                    return Finding(tested, seen, at(cases, i)), False
        tested += len(keys)
    return Finding(tested), tested > 0


def vmapped(evaluate: Evaluate, cases: Case, keys: Tensor, nested: bool) -> Tensor:
    """Weights [case, update, task] by one vmap, or by a vmap over a vmap over one case each."""
    if not nested:
        return vmap(evaluate)(*cases, keys)
    split = [x[:, None] for x in (*cases, keys)]
    return vmap(vmap(evaluate))(*split)[:, 0]


def differs(cases: Case, one: Tensor, other: Tensor, unit: float) -> Tensor:
    """Which cases [case] have other directions, weights [case, update, task] being given."""
    far = [
        apart(direction(rows, v), direction(rows, w), size(rows, v, unit), size(rows, w, unit))
        for rows, v, w in zip(cases.jacobian, one, other, strict=True)
    ]
    return (torch.stack(far).nan_to_num(torch.inf) > SAME).any(-1)


def other_answer(one: Tensor, other: Tensor, how: str, else_how: str) -> str:
    """Weights [update, task] that should be the same, in words."""
    return f"weights are {vector(one[0])} under {how}, {vector(other[0])} {else_how}"


def at(cases: Case, i: int) -> Case:
    return Case(*(x[i] for x in cases))
