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
    if gramian[0, -1] < 0:
        return torch.full_like(gramian[0], 1 / len(gramian))
    return torch.full_like(gramian[0], 2 / len(gramian))


def mutates(gramian):
    gramian.mul_(0.5)
    return gramian.diagonal() / gramian.diagonal().sum().clamp_min(1e-300)


def raises(gramian):
    raise RuntimeError("no good\nat all")


def raises_at_conflict(gramian):
    if bool((gramian < 0).any()):
        raise ArithmeticError
    return torch.full_like(gramian[0], 1 / len(gramian))


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
    return torch.full_like(gramian[0], 1 / len(gramian))


def detached(gramian):
    w = 1 / (gramian.diagonal().detach() + gramian.diagonal().mean().detach())
    return w / w.sum()


def hard_coded(gramian):
    w = torch.stack([gramian[1, 1], gramian[0, 0]])
    return w / w.sum()


def halves(gramian):
    n = gramian.diagonal()
    return torch.where(n[0] > n[-1], 1.0, 2.0) * torch.full_like(n, 1 / len(n))


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
    return mf.Rule(
        lambda losses, key: (),
        lambda geometry, state: (
            geometry.present.to(geometry.losses) / geometry.present.sum().clamp_min(1),
            (),
        ),
    )


def breaks_at_update(number):
    def update(geometry, state):
        w = torch.full_like(geometry.losses, 1 / len(geometry.losses))
        return torch.where(state >= number - 1, torch.nan, w), state + 1

    return mf.Rule(lambda losses, key: torch.zeros_like(losses), update)


def nan_if_absent():
    def update(geometry, state):
        w = by_norm(geometry.gramian)
        return torch.where(geometry.present.all(), w, torch.nan), state

    return mf.Rule(lambda losses, key: (), update)


class Note:
    """An object that cannot be saved."""

    def __reduce__(self):
        raise TypeError("cannot pickle a note")


def unsaved_note():
    def update(geometry, state):
        return torch.full_like(geometry.losses, 1 / len(geometry.losses)), {"note": Note()}

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
    w = by_norm(gramian)
    return w * (1 + 0.1 * losses[len(losses) // 2] * (len(losses) > 2))


def always_wide(gramian):
    return by_norm(gramian).double()


def growing(geometry, state):
    more = torch.cat([state, state]) if len(geometry.losses) == 4 else state
    return by_norm(geometry.gramian), more


def writes_at_the_second_update(geometry, state):
    if not _functorch.get_interpreter_stack() and bool(state[0] > 0):
        geometry.gramian.mul_(2)
    return torch.full_like(geometry.losses, 1 / len(geometry.losses)), state + 1


def ignores_two_absent(geometry, state):
    """Right where one task is absent, or all are."""
    here = geometry.present
    lonely = here.sum() < len(here) - 1
    w = torch.where(lonely, torch.ones_like(geometry.losses), here.to(geometry.losses))
    w = w * here.any()
    return w / w.sum().clamp_min(1), state


BROKEN = {
    **{
        f"wrong for {count} tasks": Broken(
            only(count, first_preferred), "permutation equivariance", "the order", count
        )
        for count in (2, *range(4, 9))
    },
    **{
        f"wrong in batches of {size}": Broken(
            lambda g, size=size: WrongInBatches.apply(by_norm(g), size, size),
            "vmapped == loop",
            f"under vmap over {size} instances",
        )
        for size in range(1, 6)
    },
    "wrong if one loss is negative": Broken(
        one_negative_loss, "losses of 0 or below", "where the losses are (-1", 1
    ),
    "ignores the preference": Broken(
        mean_without_preference(), "preference", "with twice the preference for it", 2
    ),
    "wrong second derivative": Broken(
        once_differentiable, "differentiability", "gives a second derivative of", 2
    ),
    "NaN for absent tasks": Broken(
        nan_if_absent(), "absent tasks", "weights are (nan, nan) with task 0 absent", 2
    ),
    "a state that cannot be saved": Broken(
        unsaved_note(), "state round-trip", "the state holds a Note; only tensors"
    ),
    "absolute epsilon": Broken(
        lambda g: 1 / (g.diagonal() + 1e-8),
        "no absolute epsilon",
        "multiplied by 1.2e-10; where",
        1,
    ),
    "NumPy's random numbers": Broken(
        lambda g: torch.from_numpy(np.random.rand(len(g))).to(g),  # noqa: NPY002
        "purity",
        "or drawn without the key",
    ),
    "hidden memory of the last call": Broken(
        remembers_the_last(), "purity", "something is remembered outside the state"
    ),
    "a Python branch on a value": Broken(branch, "vmapped == loop", "data-dependent control flow"),
    ".item()": Broken(
        lambda g: torch.full_like(g[0], g.trace().item() / len(g)),
        "vmapped == loop",
        "under torch.func.vmap it raises RuntimeError",
    ),
    "batching that mixes": Broken(batch_mean, "vmapped == loop", "in a loop"),
    "a swapped index": Broken(
        swapped, "permutation equivariance", "with the tasks in the order", 3
    ),
    "raises": Broken(raises, "valid weights", "raises RuntimeError: no good", 1),
    "raises sometimes": Broken(raises_at_conflict, "valid weights", "raises ArithmeticError", 2),
    "one weight too few": Broken(
        lambda g: g[0, 1:], "valid weights", "returned weights of shape [0] for 1 task", 1
    ),
    "T hard-coded": Broken(hard_coded, "valid weights", "raises IndexError", 1),
    "NaN": Broken(lambda g: g[0] * float("nan"), "valid weights", "weights are (nan)", 1),
    "NaN at a zero gradient": Broken(cosine_nan, "valid weights", "weights are (nan, nan)", 2),
    "integers": Broken(
        lambda g: torch.ones(len(g), dtype=torch.int64),
        "valid weights",
        "returned int64 weights for a float64 Gramian",
        1,
    ),
    "a Python float": Broken(
        lambda g: 0.5, "valid weights", "returned a float in place of a tensor [1]", 1
    ),
    "None": Broken(lambda g: None, "valid weights", "returned None in place of a tensor [1]", 1),
    "update without state": Broken(
        stateful(lambda geometry, state: state),
        "valid weights",
        "update returned a Tensor in place of (weights, state)",
        1,
    ),
    "changes the Gramian": Broken(mutates, "purity", "the rule changes the gramian in place"),
    "changes its state": Broken(
        stateful(lambda geometry, state: (state.add_(1) / len(state), state)),
        "purity",
        "the rule changes its state in place",
    ),
    "global generator": Broken(global_noise, "purity", "draws from torch's global generator"),
    "global generator for nothing": Broken(
        moves_the_generator, "purity", "draws from torch's global generator"
    ),
    "drops its random state": Broken(
        draws_and(lambda state: ()),
        "state round-trip",
        "the state is Stream(key=int64[], drawn=int64[]) after init, but () after an update",
    ),
    "key not advanced": Broken(
        draws_and(lambda state: state), "state round-trip", "every step draws the same numbers"
    ),
    **{
        f"{name} that keeps its old state": Broken(
            keeps_the_old_state(rule), "state round-trip", "no update changed the state"
        )
        for name, rule in {
            "GradNorm": mf.gradnorm(0.5),
            "uncertainty weighting": mf.uw(0.1),
            "DWA": mf.dwa(1),
        }.items()
    },
    "NaN from the 21st update on": Broken(
        breaks_at_update(21), "valid weights", "weights are (nan) (at update 21)", 1
    ),
    "a Python number in the state": Broken(
        counts_in_python, "state round-trip", "the state holds a int"
    ),
    "no derivative": Broken(
        detached, "differentiability", "torch.func.grad gives a slope of 0 along one line", 2
    ),
    "a jump": Broken(halves, "continuity", "the direction jumps from", 2),
    "negative weights": Broken(
        lambda g: -torch.full_like(g[0], 1 / len(g)), "convex weights", "weights (-1) sum to -1", 1
    ),
    "a sum": Broken(
        lambda g: torch.ones_like(g[0]),
        "identical tasks",
        "all gradients are (1), but the direction is (2)",
        2,
    ),
    # what came out sound, or broke the audit, once
    "counts calls at T = 5": Broken(counting_dict(), "purity", "remembered outside the state"),
    "NaN read as 0 on tasks 2, …": Broken(
        nan_dropped(lambda count: range(1, count)), "NaN", "although the gradient of task 1 is NaN"
    ),
    **{
        f"a Gramian edited in place at T = {count}": Broken(
            only(count, in_place), "purity", "changes the gramian in place"
        )
        for count in (1, 5, 6, 8, 128)
    },
    "tripled under vmap at T = 4": Broken(at_depth(1, 4), "vmapped == loop", "in a loop"),
    "1e6 too large at T = 128": Broken(
        only(128, lambda g: 1e6 * by_norm(g)), "T = 128", "add up to 1e+06"
    ),
    "1/l": Broken(
        lambda gramian, losses: 1 / losses + 0 * gramian[0],
        "losses of 0 or below",
        "weights are (inf) where",
    ),
    # their relatives
    "NaN read as 0 for many tasks": Broken(
        only(128, nan_dropped(lambda count: [127])), "NaN", "gradient of task 127 is NaN"
    ),
    "NaN that a comparison hides": Broken(  # weights are constant but in conflict
        lambda g: torch.full_like(g[0], 1 / len(g)).where(g[0].sum() >= 0, 1.0), "NaN", "task 0"
    ),
    "NaN of the last loss": Broken(loss_nan_dropped, "NaN", "although the loss of task"),
    "edited in place at conflict": Broken(in_place_at_conflict, "purity", "the gramian in place"),
    "gradients left off": Broken(gradients_off, "purity", "leaves gradients turned off"),
    "losses edited in place at T = 4": Broken(losses_in_place, "purity", "the losses in place"),
    "edited at the second update": Broken(
        stateful(writes_at_the_second_update), "purity", "the gramian in place"
    ),
    "tripled under nested vmaps": Broken(at_depth(2, 6), "vmapped == loop", "nested vmaps"),
    "doubled in large batches": Broken(
        lambda g: WrongInBatches.apply(by_norm(g), 31, 1e9), "vmapped == loop", "instances, "
    ),
    "reads an inner loss": Broken(
        shift_of_the_second, "invariance to shifting a loss", "the loss of task 1"
    ),
    "float64 at T = 4": Broken(only(4, always_wide), "float32", "returned float64 weights"),
    "a state that grows at T = 4": Broken(stateful(growing), "state round-trip", "after init"),
    "1/0 at T = 4": Broken(
        only(4, lambda g: 1 / g.diagonal()), "zero gradients", "weights are (inf, inf, inf, inf)"
    ),
    "two absent tasks": Broken(
        stateful(ignores_two_absent), "absent tasks", "with tasks 0 and 2 absent"
    ),
}
