"""Contracts of the whole rule: it is pure, its state can be saved, its vmap equals its loop."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ..core._torch import tree_flatten, tree_leaves, tree_map
from ..testing.integers import integers, pick
from ..types import Geometry
from . import instances
from .harness import MANY, Finding, Harness, attempt, describe_error, quiet, same, usual
from .instances import SMALL, Case
from .properties import Instance, compare, vector

SAME = 1e-7
"""vmapped == loop: a batched product may round differently, and an exact solver on top of it
differs by the root of that.
"""

REMEMBERS = (
    "the same Gramian, losses and state give other weights the second time: something is "
    "remembered outside the state"
)
GLOBAL = (
    "the rule draws from torch's global generator; numbers come from the key that init gets (see "
    "mtlfunc.random)"
)

BATCHES = (1, 2, 3, 4, 5, 64)
"""Numbers of instances in one vmap, each tried with two and three tasks."""


# ---- purity ------------------------------------------------------------------------------------


def check_purity(harness: Harness) -> Finding:
    """The same Gramian, losses and state give the same weights, and nothing else happens.

    torch's global generator stays as it was. Every case comes twice, the second time in the
    opposite order. `harness` notes whether answers repeat, and what is changed in place.
    """
    cases, first = [*enumerate(harness.few())], {}
    found = Finding(0)
    for i, case in [*cases, *reversed(cases)]:
        generator = torch.get_rng_state()
        with quiet():
            weights = attempt(harness.weigh, *case)
        if weights is None:  # "valid weights" reports it
            continue
        seen = ""
        if not same(first.setdefault(i, weights.detach().clone()), weights):
            harness.repeats, seen = False, REMEMBERS
        if not torch.equal(generator, torch.get_rng_state()):
            seen = GLOBAL
        tested = found.instances + 1
        found = (
            Finding(tested, seen, case)
            if seen and not found.seen
            else found._replace(instances=tested)
        )
    return found


# ---- state -------------------------------------------------------------------------------------


def check_state(harness: Harness) -> Finding | None:
    """The state is made of tensors, keeps its structure, and survives torch.save and torch.load.

    It moves on if it holds a key, and a run that goes on from it is the same bit by bit.

    Returns:
        None for a rule without state.
    """
    tested, any_state = 0, False
    with quiet():
        for case in harness.few():
            if len(case.jacobian) > SMALL:
                continue
            try:
                state = harness.start(case.losses[0])
                any_state |= bool(tree_leaves(state))
                seen = harness.geometry(case.jacobian, case.losses[0])
                _, following, _ = harness.step(seen, state)
            except Exception:  # "valid weights" reports it
                continue
            any_state |= bool(tree_leaves(following))
            wrong = misfit(harness, seen, state, following) or reload(harness, case, following)
            tested += 1
            if wrong:
                return Finding(tested, wrong, case)
    return Finding(tested) if any_state else None


def misfit(harness: Harness, seen: Geometry, state: Any, following: Any) -> str:
    """What keeps this state from being carried on; empty if nothing does."""
    for leaf in tree_leaves((state, following)):
        if not isinstance(leaf, Tensor):
            return (
                f"the state holds a {type(leaf).__name__}; only tensors can be batched, compiled "
                "and saved"
            )
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


# ---- vmap --------------------------------------------------------------------------------------


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
        rows = (
            pick(integers(count), largest)
            if count <= 3
            else instances.generic("gaussian", count, largest)
        )
        cases = harness.ready(rows)
        cases = Case(*(x[:largest] for x in cases))
        keys = torch.arange(len(cases.losses))
        looked = [i for i in range(len(keys)) if i < 5 or i == len(keys) - 1]
        with quiet():
            loop = {i: attempt(harness.weigh, *at(cases, i), keys[i]) for i in looked}
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
                    seen = (
                        f"under torch.func.vmap it {describe_error(error)} (a Python branch on a "
                        "value, .item(), NumPy or a write into a new tensor cannot be batched)"
                    )
                    return Finding(tested + 1, seen, at(cases, 0))
                for i in (i for i in loop if i < len(found)):
                    x = Instance(*at(cases, i), loop[i], unit)
                    far = compare(x, x.rows, found[i])[0].nan_to_num(torch.inf)
                    if bool((far > SAME).any()):
                        how = "nested vmaps" if nested else f"vmap over {len(found)} instances"
                        seen = (
                            f"weights are {vector(found[i][0])} under {how}, "
                            f"{vector(loop[i][0])} in a loop (key {i})"
                        )
                        return Finding(tested, seen, at(cases, i))
        tested += len(keys)
    harness.vmapped = tested > 0
    return Finding(tested)


def batch(harness: Harness, cases: Case, keys: Tensor, size: int, inner: int) -> Tensor:
    """Weights [case, update, task] of the first `size` cases by one vmap, or by a vmap over a vmap
    over `inner` cases each; 0 is one vmap.
    """
    given: list[Any] = [x[:size] for x in (*cases, keys)]
    if not inner:
        return vmap(harness.weigh)(*given)
    given = [x.unflatten(0, (-1, inner)) for x in given]
    return vmap(vmap(harness.weigh))(*given).flatten(0, 1)


def at(cases: Case, i: int) -> Case:
    return Case(*(x[i] for x in cases))
