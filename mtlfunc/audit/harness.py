"""A rule under audit: how it is called, what it reads, and the instances that it is tested on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ..core import random
from ..core.internals import tree_flatten, tree_leaves, tree_map
from ..core.transforms import inside_transform
from ..rules.common import may_read
from ..testing.integers import integers, pick, widened
from ..testing.judge import Invalid, attempt, quiet
from ..types import Geometry, Rule
from . import instances
from .instances import SMALL, Case

Weigh = Callable[..., Tensor]
"""(jacobian [task, param], losses [update, task]) -> weights [update, task]."""

Extra = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""(jacobian [task, param], losses [task]) -> what a probe would have put into `Geometry.extra`."""

UPDATES = 3  # over which every answer of a rule with state is tested
LONG = 32  # updates of the run that looks for weights that stop being valid
MANY = 128  # the largest number of tasks
BATCHED = 5  # the most tasks of which there are many instances
EVERY = tuple(range(1, 9))  # numbers of tasks that every property tries
LOOPED = 50  # the most integer Jacobians for each T, if a rule is called on one at a time
PLAIN = (0, *(1 + instances.FAMILIES.index(x) for x in ("gaussian", "agreeing")))  # usual lengths


class Inapplicable(Exception):
    """A test has nothing to say of this rule; the text says why."""


class Finding(NamedTuple):
    """What a test saw: over how many instances, what was wrong, and where."""

    instances: int
    seen: str = ""  # empty: nothing
    case: Case | None = None
    failures: int = 1
    dependent: bool = False  # see `Row.dependent`


class Pool(NamedTuple):
    """Instances with T tasks in one batch, and what the rule answers to them."""

    cases: Case
    weights: Tensor  # [case, update, task]
    family: Tensor  # 0 for integer Jacobians, 1 + its number for a family of `instances.FAMILIES`
    independent: Tensor  # whether the gradients are linearly independent
    unit: float  # what Σ|w_t|‖g_t‖ / max‖g_t‖ usually is

    @property
    def valid(self) -> Tensor:
        """Which instances [case] have finite weights."""
        return self.weights.isfinite().flatten(1).all(-1)

    def take(self, places: Tensor) -> Pool:
        """Some of the instances."""
        weights, family, free = self.weights[places], self.family[places], self.independent[places]
        return Pool(self.cases.at(places), weights, family, free, self.unit)


class Harness:
    """A rule under audit, with what is known of it and its instances."""

    def __init__(
        self, rule: Rule, plain: bool, extra: Extra | None, tolerance: float, most: int, key: int
    ) -> None:
        self.rule = rule
        self.plain = plain
        self.extra = extra
        self.tolerance = tolerance
        self.mutation: Finding | None = None  # the first call that changed its inputs in place
        self.repeats = True  # whether the same input gives the same answer
        self.vmapped = False  # whether answers under vmap can be used
        self.most: int = min(most, LOOPED)  # integer Jacobians for each T
        self.pools: dict[int, Pool] = {}
        few, many = random.uniform(random.key(key), (2,), torch.float64).tolist()
        self.between: tuple[int, int] = 9 + int(few * (SMALL - 8)), SMALL + 1 + int(many * 20)
        self.counts: tuple[int, ...] = (*EVERY, *self.between)
        self._learn_inputs()

    def start(self, losses: Tensor, key: Tensor | None = None) -> Any:
        """The state with which `mtlfunc.weights(rule, …, key=key)` begins; None is 0."""
        start = random.fold_in(random.key(0) if key is None else key, 1)
        return self.rule.init(losses.clone(), start)

    def step(self, seen: Geometry, state: Any) -> tuple[Tensor, Any, str]:
        """One update: the weights, the next state, and which inputs it changed in place.

        Raises:
            Invalid: for an answer that is not a vector `[task]`.
        """
        given = None if inside_transform() else (seen, state)
        before = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, given)
        answer = self.rule.update(seen, state)
        changed = changes(before, given) if given else ""
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Invalid(f"update returned {_kind(answer)} in place of (weights, state)")
        weights, state = answer
        if not isinstance(weights, Tensor):
            raise Invalid(f"returned {_kind(weights)} in place of a tensor [{len(seen.losses)}]")
        if weights.shape != seen.losses.shape:
            tasks = f"{len(seen.losses)} task{'s' * (len(seen.losses) != 1)}"
            raise Invalid(f"returned weights of shape {list(weights.shape)} for {tasks}")
        return weights, state, changed

    def geometry(
        self, jacobian: Tensor, losses: Tensor, present: Tensor | None = None,
        preference: Tensor | None = None,
    ) -> Geometry:  # fmt: skip
        """What a probe would hand to the rule, in new tensors; all of an absent task's are zero."""
        here = torch.ones_like(losses, dtype=torch.bool)
        share = torch.full_like(losses, 1 / len(losses)) if preference is None else preference
        if present is not None:
            here, share = here & present, present.to(losses) / present.sum().clamp_min(1)
            jacobian, losses = jacobian * present[:, None], losses * present
        measured = {} if self.extra is None else self.extra(jacobian, losses)
        gramian = jacobian @ jacobian.mT if may_read(self.rule, "gramian") else None
        return Geometry(losses.clone(), gramian, share.clone(), here, measured)

    def weigh(
        self, jacobian: Tensor, losses: Tensor, key: Tensor | None = None, strict: bool = False,
        present: Tensor | None = None, preference: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The weights of each update, from one Jacobian and the losses of each update.

        Weights of another dtype are converted, unless `strict`: that is a finding of its own.
        `present` and `preference` [task] hold at all updates; the state begins with all tasks.
        """
        state, kept = self.start(losses[0], key), []
        for now in losses.unbind(0):
            seen = self.geometry(jacobian, now, present, preference)
            weights, state, changed = self.step(seen, state)
            if changed and self.mutation is None:
                said = f"the rule changes {changed} in place"
                self.mutation = Finding(0, said, Case(jacobian, losses))
            if strict and weights.dtype != jacobian.dtype:
                said = f"returned {weights.dtype} weights for a {jacobian.dtype} Gramian"
                raise Invalid(said.replace("torch.", ""))
            kept.append(weights.to(jacobian.dtype))
        return torch.stack(kept)

    def answers(self, cases: Case) -> Tensor:
        """Weights [case, update, task] as far as there are any, NaN elsewhere."""
        with quiet():
            if self.vmapped and cases.losses.shape[-1] <= SMALL:
                found = attempt(vmap(self.weigh), *cases)
                if found is not None:
                    return found
            found = torch.full_like(cases.losses, torch.nan)
            for i, case in enumerate(zip(*cases, strict=True)):
                weights = attempt(self.weigh, *case)
                if weights is not None:
                    found[i] = weights.detach()
        return found

    def _learn_inputs(self) -> None:
        """What the weights depend on: as the rule says, and by running it."""
        self.reads_losses: bool = self.rule.reads is not None and may_read(self.rule, "losses")
        self.draws: bool = False
        self.updates: int = 1
        with quiet():
            for count in (2, 3):
                drawn = instances.generic("gaussian", count, 4)
                rows = torch.cat([widened(integers(count)[[2, 5, 9, 14]], count + 2), drawn])
                level, falling = instances.patterns(count, UPDATES, True)
                first = attempt(self.start, level[0])
                self.updates = UPDATES if tree_leaves(first) else self.updates
                plain = [attempt(self.weigh, each, level) for each in rows]
                keyed = [attempt(self.weigh, each, level, torch.tensor(1)) for each in rows]
                self.draws |= not same(plain, keyed)
                if self.reads_losses:
                    continue
                low = [level.index_fill(-1, torch.tensor(t), -1.0) for t in range(count)]
                for losses in (*low, falling):
                    tried = [attempt(self.weigh, each, losses) for each in rows]
                    self.reads_losses |= not same(tried, plain)

    @property
    def reads_gramian(self) -> bool:
        """Whether weights of some Jacobians with the same losses differ."""

        def differ(pool: Pool) -> bool:
            losses = pool.cases.losses
            found = pool.weights[(losses == losses[0]).flatten(1).all(1) & pool.valid]
            return bool((found != found[:1]).any())

        return any(map(differ, map(self.pool, (2, 3))))

    def ready(self, rows: Tensor, updates: int = 0) -> Case:
        """Jacobians with their losses; of many tasks two updates at most: a state may need one."""
        count = rows.shape[1]
        updates = updates or (self.updates if count <= SMALL else min(self.updates, 2))
        read = self.reads_losses and count <= SMALL
        patterns = instances.patterns(count, updates, read)
        losses = patterns if count <= BATCHED else patterns[-1:]
        # every Jacobian with every pattern, those of one Jacobian side by side
        return Case(rows.repeat_interleave(len(losses), 0), losses.repeat(len(rows), 1, 1))

    def few(self) -> list[Case]:
        """A few small cases of different norms and angles, then two or one of every T."""
        rows = [integers(count)[[0, 3, 7]] for count in (2, 3, 1)]
        for count in (*self.counts[3:], MANY):
            families = ("gaussian", "stationary") if count <= SMALL else ("gaussian",)
            rows.append(torch.cat([instances.generic(family, count, 1) for family in families]))
        return [Case(*case) for x in rows for case in zip(*self.ready(x), strict=True)]

    def answered(
        self, cases: Case, unit: float | None = None, family: Tensor | None = None
    ) -> Pool:
        """Instances with the rule's answers, by default integer Jacobians."""
        weights, rows = self.answers(cases), cases.jacobian
        family = torch.zeros(len(rows)) if family is None else family
        if unit is None:
            plain = torch.isin(family, torch.tensor(PLAIN)) & weights.isfinite().all(-1).all(-1)
            unit = usual(rows[plain], weights[plain])
        return Pool(cases, weights, family, instances.independent(rows), unit)

    def takes(self, count: int) -> bool:
        """Whether the rule answers one of T = count tasks."""
        one = self.ready(instances.generic("gaussian", count, 1))
        return bool(self.answers(one).isfinite().any())

    def pool(self, count: int) -> Pool:
        """All instances of T = count tasks: integer Jacobians first, then generic families."""
        if count not in self.pools:
            size = 16 if count <= 3 else 8 if count <= BATCHED else 1
            parts = [pick(integers(count), self.most)] if count <= 3 else []
            first = 1 - len(parts)
            families = instances.FAMILIES if count > 1 else ()
            parts += [instances.generic(family, count, size) for family in families]
            width = max(count + 2, *(part.shape[-1] for part in parts))
            cases = self.ready(torch.cat([widened(part, width) for part in parts]))
            family = torch.cat([torch.full((len(x),), first + i) for i, x in enumerate(parts)])
            family = family.repeat_interleave(len(cases.losses) // len(family))
            self.pools[count] = self.answered(cases, family=family)
        return self.pools[count]


def usual(jacobian: Tensor, weights: Tensor) -> float:
    """The median of Σ|w_t|‖g_t‖ / max‖g_t‖ over instances and updates; 0 without any."""
    norms = torch.linalg.vector_norm(jacobian, dim=-1)
    spent, most = (weights.abs() * norms[:, None]).sum(-1), norms.amax(-1)
    return float((spent / most[:, None])[most > 0].median()) if bool((most > 0).any()) else 0.0


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal bit by bit; NaN equals NaN."""
    (xs, form), (ys, other_form) = tree_flatten(one), tree_flatten(other)
    return form == other_form and all(map(_equal, xs, ys))


def _equal(x: Any, y: Any) -> bool:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return x is y
    alike = x.shape == y.shape and x.dtype == y.dtype
    return alike and bool(torch.isclose(x, y, 0, 0, equal_nan=True).all())


def changes(before: tuple[Geometry, Any], after: tuple[Geometry, Any]) -> str:
    """Which fields of (geometry, state) differ, in words; empty if none does."""
    fields = zip(Geometry._fields, before[0], after[0], strict=True)
    names = [f"the {name}" for name, x, y in fields if not same(x, y)]
    return ", ".join(names + ["its state"] * (not same(before[1], after[1])))


def _kind(x: Any) -> str:
    return "None" if x is None else f"a {type(x).__name__}{' (audit that)' * isinstance(x, Rule)}"
