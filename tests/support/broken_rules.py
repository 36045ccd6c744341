"""Rules that are broken on purpose, with what the audit must say of them."""

from typing import NamedTuple

import numpy as np
import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

import mtlfunc as mf
from mtlfunc import solvers

F64 = torch.float64


class Broken(NamedTuple):
    rule: object
    property: str  # that names what is wrong
    seen: str  # part of what is told
    smallest: int = 0  # T of the counterexample; 0 is any


def no_factory():
    raise RuntimeError("no rule today")


def no_rule():
    return 3


def uniform(weighed):
    """The mean's weights, of a Gramian or of losses."""
    return torch.full_like(weighed.diagonal() if weighed.ndim > 1 else weighed, 1 / len(weighed))


def stateful(update, init=lambda losses, key: torch.zeros_like(losses)):
    return mf.Rule(init, update)


def remembers_the_last():
    last = {}

    def weights(gramian):
        w = last.get(len(gramian), gramian.diagonal()) + gramian.diagonal()
        last[len(gramian)] = gramian.diagonal().clone()
        return w / w.sum()

    return weights


def branch(gramian):
    return uniform(gramian) if gramian[0, -1] < 0 else 2 * uniform(gramian)


def mutates(gramian):
    gramian.mul_(0.5)
    return gramian.diagonal() / gramian.diagonal().sum().clamp_min(1e-300)


def raises(gramian):
    raise RuntimeError("no good\nat all")


def raises_at_conflict(gramian):
    if bool((gramian < 0).any()):
        raise ArithmeticError
    return uniform(gramian)


def cosine_nan(gramian):
    n = gramian.diagonal().sqrt()
    return torch.softmax((gramian / n / n[:, None]).mean(-1), -1)


def inverse_norms(gramian, eps):
    w = 1 / (gramian.diagonal().sqrt() + eps)
    return w / w.sum()


def swapped(gramian):
    return solvers.auto()(solvers.min_norm(gramian)).weights.flip(0)


def global_noise(gramian):
    return torch.softmax(torch.rand(len(gramian), dtype=gramian.dtype), -1)


def moves_the_generator(gramian):
    torch.rand(1)
    return uniform(gramian)


def seeds_numpy(gramian):
    np.random.seed(1)  # noqa: NPY002
    return uniform(gramian)


def detached(gramian):
    w = 1 / (gramian.diagonal().detach() + gramian.diagonal().mean().detach())
    return w / w.sum()


def hard_coded(gramian):
    w = torch.stack([gramian[1, 1], gramian[0, 0]])
    return w / w.sum()


def halves(gramian):
    n = gramian.diagonal()
    return torch.where(n[0] > n[-1], 1.0, 2.0) * uniform(n)


def batch_mean(gramian):
    """Right alone; a custom operator whose batching forgets which problem is which."""
    return BatchMixed.apply(gramian)


class BatchMixed(torch.autograd.Function):
    @staticmethod
    def forward(gramian):
        return gramian.diagonal(dim1=-2, dim2=-1) + 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, gramian):  # pyright: ignore[reportIncompatibleMethodOverride]
        d = gramian.movedim(in_dims[0], 0).diagonal(dim1=-2, dim2=-1) + 1
        return d.mean(0, keepdim=True).expand_as(d).clone(), 0


def draws_and(following):
    """Random weights; the next state is `following` of the state."""

    def update(geometry, state):
        key, _ = mf.random.draw(state)
        drawn = mf.random.normal(key, (len(geometry.losses),), geometry.gramian.dtype)
        return torch.softmax(drawn, -1), following(state)

    return lambda: mf.Rule(lambda losses, key: mf.random.stream(key), update)


def keeps_the_old_state(rule):
    """A rule that computes its next state and returns the one that it was given."""
    return rule._replace(update=lambda geometry, state: (rule.update(geometry, state)[0], state))


def counts_in_python():
    def update(geometry, state):
        count, w = state
        return w / w.sum(), (count + 1, w)

    return mf.Rule(lambda losses, key: (0, torch.ones_like(losses)), update)


def by_norm(gramian):
    """A sound rule: invariant to the order, homogeneous, NaN for NaN."""
    n = gramian.diagonal()
    total = n.sum()
    return torch.where(total == 0, 1.0, n) / torch.where(total == 0, len(n), total)


def only(count, wrong, right=by_norm):
    """`wrong` for so many tasks, `right` for others."""
    return lambda gramian: (wrong if len(gramian) == count else right)(gramian)


def first_preferred(gramian):
    return torch.softmax(torch.arange(len(gramian), 0, -1).to(gramian), -1)


class WrongInBatches(torch.autograd.Function):
    """The identity, but doubled in batches of some sizes."""

    @staticmethod
    def forward(w, least, most):
        return w.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, w, least, most):  # pyright: ignore[reportIncompatibleMethodOverride]
        w = w.movedim(in_dims[0], 0) if in_dims[0] is not None else w
        return w * (2.0 if least <= info.batch_size <= most else 1.0), 0


class FirstDerivativeOnly(torch.autograd.Function):
    """1/(1 + x), whose derivative is right and takes part in no further derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 1 / (1 + x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        return -g / (1 + ctx.saved_tensors[0].detach()) ** 2


def once_differentiable(gramian):
    n = gramian.diagonal()
    return FirstDerivativeOnly.apply(n / n.sum().clamp_min(1e-300))


def one_negative_loss(gramian, losses):
    """Reads losses only if exactly one is negative."""
    w = by_norm(gramian)
    return torch.where((losses < 0).sum() == 1, -w, w)


def mean_without_preference():
    def update(geometry, state):
        return geometry.present.to(geometry.losses) / geometry.present.sum().clamp_min(1), ()

    return mf.Rule(lambda losses, key: (), update)


def breaks_at_update(number):
    def update(geometry, state):
        return torch.where(state >= number - 1, torch.nan, uniform(geometry.losses)), state + 1

    return mf.Rule(lambda losses, key: torch.zeros_like(losses), update)


def nan_if_absent():
    def update(geometry, state):
        return torch.where(geometry.present.all(), by_norm(geometry.gramian), torch.nan), state

    return mf.Rule(lambda losses, key: (), update)


class Note:
    """An object that cannot be saved."""

    def __reduce__(self):
        raise TypeError("cannot pickle a note")


def unsaved_note():
    def update(geometry, state):
        return uniform(geometry.losses), {"note": Note()}

    return mf.Rule(lambda losses, key: {"note": Note()}, update)


def reversed_from(count):
    """The min-norm point, in the wrong order from so many tasks on."""

    def weights(gramian):
        w = solvers.auto()(solvers.min_norm(gramian)).weights
        return w.flip(0) if len(gramian) >= count else w

    return weights


def counting_dict():
    """A dict that counts calls where T = 5, which the weights show."""
    calls = {}

    def weights(gramian):
        calls[len(gramian)] = calls.get(len(gramian), 0) + 1
        w = by_norm(gramian)
        return w / calls[len(gramian)] if len(gramian) == 5 else w

    return weights


def in_place(gramian):
    w = by_norm(gramian)
    gramian[0, 0] += 0.0 if _functorch.get_interpreter_stack() else 1.0
    return w


def in_place_at_conflict(gramian):
    w = by_norm(gramian)
    if not _functorch.get_interpreter_stack() and bool((gramian < 0).any()):
        gramian.neg_()
    return w


def gradients_off(gramian):
    torch.set_grad_enabled(False)
    return by_norm(gramian)


def losses_in_place(gramian, losses):
    if len(losses) == 4:
        losses.add_(1)
    return by_norm(gramian)


def at_depth(depth: int, count: int):
    """Tripled under so many transforms."""

    def weights(gramian):
        deep = len(_functorch.get_interpreter_stack() or ())
        return by_norm(gramian) * (3.0 if deep >= depth and len(gramian) == count else 1.0)

    return weights


def nan_dropped(tasks):
    """NaN of some tasks' gradients is read as 0."""

    def weights(gramian):
        n = gramian.diagonal()
        kept = torch.tensor([t in tasks(len(n)) for t in range(len(n))])
        n = torch.where(kept, n.nan_to_num(0.0), n) + 1e-300
        return n / n.sum()

    return weights


def loss_nan_dropped(gramian, losses):
    last = torch.arange(len(losses)) == len(losses) - 1
    kept = torch.where(last, losses.nan_to_num(1.0), losses)
    return torch.softmax(kept, -1) + 0 * gramian.diagonal()


def shift_of_the_second(gramian, losses):
    """Reads the loss of an inner task alone."""
    return by_norm(gramian) * (1 + 0.1 * losses[len(losses) // 2] * (len(losses) > 2))


def always_wide(gramian):
    return by_norm(gramian).double()


def growing(geometry, state):
    more = torch.cat([state, state]) if len(geometry.losses) == 4 else state
    return by_norm(geometry.gramian), more


def writes_at_the_second_update(geometry, state):
    if not _functorch.get_interpreter_stack() and bool(state[0] > 0):
        geometry.gramian.mul_(2)
    return uniform(geometry.losses), state + 1


def ignores_two_absent(geometry, state):
    """Right where one task is absent, or all are."""
    here = geometry.present
    lonely = here.sum() < len(here) - 1
    w = torch.where(lonely, torch.ones_like(geometry.losses), here.to(geometry.losses))
    w = w * here.any()
    return w / w.sum().clamp_min(1), state


# rules by the property that names what is wrong
BY_PROPERTY = {
    "permutation equivariance": {
        **{f"wrong for {count} tasks": (only(count, first_preferred), "the order", count)
           for count in (2, *range(4, 9))},
        "a swapped index": (swapped, "with the tasks in the order", 3),
    },
    "vmapped == loop": {
        **{f"wrong in batches of {size}": (
            lambda g, size=size: WrongInBatches.apply(by_norm(g), size, size),
            f"under vmap over {size} instances") for size in range(1, 6)},
        "a Python branch on a value": (branch, "data-dependent control flow"),
        ".item()": (lambda g: torch.full_like(g[0], g.trace().item() / len(g)),
                    "under torch.func.vmap it raises RuntimeError"),
        "batching that mixes": (batch_mean, "in a loop"),
        "tripled under vmap at T = 4": (at_depth(1, 4), "in a loop"),
        "tripled under nested vmaps": (at_depth(2, 6), "nested vmaps"),
        "doubled in large batches": (lambda g: WrongInBatches.apply(by_norm(g), 31, 1e9),
                                     "instances, "),
    },
    "losses of 0 or below": {
        "wrong if one loss is negative": (one_negative_loss, "where the losses are (-1", 1),
        "1/l": (lambda gramian, losses: 1 / losses + 0 * gramian[0], "weights are (inf) where"),
    },
    "preference": {
        "ignores the preference": (mean_without_preference(), "with twice the preference for it", 2)
    },
    "differentiability": {
        "wrong second derivative": (once_differentiable, "gives a second derivative of", 2),
        "no derivative": (detached, "torch.func.grad gives a slope of 0 along one line", 2),
    },
    "absent tasks": {
        "NaN for absent tasks": (nan_if_absent(), "weights are (nan, nan) with task 0 absent", 2),
        "two absent tasks": (stateful(ignores_two_absent), "with tasks 0 and 2 absent"),
        "five tasks or more": (stateful(lambda geometry, state: mf.krum(1).update(
            geometry._replace(present=geometry.losses > 0), state)), "with task 0 absent", 5),
    },
    "state round-trip": {
        "a state that cannot be saved": (unsaved_note(), "the state holds a Note; only tensors"),
        "drops its random state": (draws_and(lambda state: ()), "the state is Stream(key=int64[], "
                                   "drawn=int64[]) after init, but () after an update"),
        "key not advanced": (draws_and(lambda state: state), "every step draws the same numbers"),
        **{f"{name} that keeps its old state": (
            keeps_the_old_state(rule), "no update changed the state") for name, rule in {
            "GradNorm": mf.gradnorm(0.5), "uncertainty weighting": mf.uw(0.1), "DWA": mf.dwa(1),
        }.items()},
        "a Python number in the state": (counts_in_python, "the state holds a int"),
        "a state that grows at T = 4": (stateful(growing), "after init"),
    },
    "no absolute epsilon": {
        "absolute epsilon": (lambda g: 1 / (g.diagonal() + 1e-8), "multiplied by 1.2e-10; where", 1)
    },
    "purity": {
        "NumPy's random numbers": (
            lambda g: torch.from_numpy(np.random.rand(len(g))).to(g),  # noqa: NPY002
            "draws from a global generator"),
        "a seed for NumPy": (seeds_numpy, "or seeds it"),
        "hidden memory of the last call": (remembers_the_last(),
                                           "something is remembered outside the state"),
        "changes the Gramian": (mutates, "the rule changes the gramian in place"),
        "changes its state": (stateful(lambda geometry, state: (state.add_(1) / len(state), state)),
                              "the rule changes its state in place"),
        "global generator": (global_noise, "draws from a global generator"),
        "global generator for nothing": (moves_the_generator,
                                         "draws from a global generator"),
        "counts calls at T = 5": (counting_dict(), "remembered outside the state"),
        **{f"a Gramian edited in place at T = {count}": (
            only(count, in_place), "changes the gramian in place") for count in (1, 5, 6, 8, 128)},
        "edited in place at conflict": (in_place_at_conflict, "the gramian in place"),
        "gradients left off": (gradients_off, "leaves gradients turned off"),
        "losses edited in place at T = 4": (losses_in_place, "the losses in place"),
        "edited at the second update": (stateful(writes_at_the_second_update),
                                        "the gramian in place"),
    },
    "valid weights": {
        "raises": (raises, "raises RuntimeError: no good", 1),
        "raises sometimes": (raises_at_conflict, "raises ArithmeticError", 2),
        "one weight too few": (lambda g: g[0, 1:], "returned weights of shape [0] for 1 task", 1),
        "T hard-coded": (hard_coded, "raises IndexError", 1),
        "NaN": (lambda g: g[0] * float("nan"), "weights are (nan)", 1),
        "NaN at a zero gradient": (cosine_nan, "weights are (nan, nan)", 2),
        "integers": (lambda g: torch.ones(len(g), dtype=torch.int64),
                     "returned int64 weights for a float64 Gramian", 1),
        "a Python float": (lambda g: 0.5, "returned a float in place of a tensor [1]", 1),
        "None": (lambda g: None, "returned None in place of a tensor [1]", 1),
        "update without state": (stateful(lambda geometry, state: state),
                                 "update returned a Tensor in place of (weights, state)", 1),
        "a Gramian that it does not say it reads": (
            mf.Rule(lambda losses, key: (), lambda seen, state: (seen.gramian[0], state),
                    frozenset({"losses"})), "raises TypeError: 'NoneType'", 1),
        "NaN from the 21st update on": (breaks_at_update(21), "weights are (nan) (at update 21)", 1)
    },
    "continuity": {"a jump": (halves, "the direction jumps from", 2)},
    "convex weights": {"negative weights": (lambda g: -uniform(g), "weights (-1) sum to -1", 1)},
    "identical tasks": {
        "a sum": (lambda g: torch.ones_like(g[0]),
                  "all gradients are (1), but the direction is (2)", 2)
    },
    "NaN": {
        "NaN read as 0 on tasks 2, …": (nan_dropped(lambda count: range(1, count)),
                                        "although the gradient of task 1 is NaN"),
        "NaN read as 0 for many tasks": (only(128, nan_dropped(lambda count: [127])),
                                         "gradient of task 127 is NaN"),
        "NaN that a comparison hides": (  # weights are constant but in conflict
            lambda g: uniform(g).where(g[0].sum() >= 0, 1.0), "task 0"),
        "NaN of the last loss": (loss_nan_dropped, "although the loss of task"),
    },
    "T = 128": {
        "1e6 too large at T = 128": (only(128, lambda g: 1e6 * by_norm(g)), "add up to 1e+06")
    },
    "invariance to shifting a loss": {
        "reads an inner loss": (shift_of_the_second, "the loss of task 1")
    },
    "float32": {"float64 at T = 4": (only(4, always_wide), "returned float64 weights")},
    "zero gradients": {
        "1/0 at T = 4": (only(4, lambda g: 1 / g.diagonal()), "weights are (inf, inf, inf, inf)")
    },
}  # fmt: skip
BROKEN = {
    case: Broken(rule, name, *seen)
    for name, cases in BY_PROPERTY.items()
    for case, (rule, *seen) in cases.items()
}
