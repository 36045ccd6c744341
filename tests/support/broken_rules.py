"""Rules that are broken on purpose, with what the audit must say of them."""

from typing import NamedTuple

import numpy as np
import torch

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


def hidden_state():
    seen = []

    def weights(gramian):
        seen.append(1)
        return torch.full_like(gramian[0], 1 / len(seen))

    return weights


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


def mutates_losses(gramian, losses):
    losses += 1
    return losses / losses.sum()


def raises(gramian):
    raise RuntimeError("no good\nat all")


def raises_at_conflict(gramian):
    if bool((gramian < 0).any()):
        raise ArithmeticError
    return torch.full_like(gramian[0], 1 / len(gramian))


def cosine_nan(gramian):
    n = gramian.diagonal().sqrt()
    return torch.softmax((gramian / n / n[:, None]).mean(-1), -1)


def softmin(gramian):
    return torch.softmax(-gramian.diagonal(), -1)


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


def numpy_noise():
    rng = np.random.default_rng(0)
    return lambda gramian: torch.from_numpy(rng.dirichlet(np.ones(len(gramian)))).to(gramian)


def detached(gramian):
    w = 1 / (gramian.diagonal().detach() + gramian.diagonal().mean().detach())
    return w / w.sum()


def hard_coded(gramian):
    w = torch.stack([gramian[1, 1], gramian[0, 0]])
    return w / w.sum()


def nan_dropped(gramian):
    n = gramian.diagonal().nan_to_num(1.0) + 1e-300
    return n / n.sum()


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


def drops_its_stream():
    def update(geometry, state):
        key, _ = mf.random.draw(state)
        return torch.softmax(
            mf.random.normal(key, (len(geometry.losses),), geometry.gramian.dtype), -1
        ), ()

    return mf.Rule(lambda losses, key: mf.random.stream(key), update)


def forgets_to_advance():
    def update(geometry, state):
        key, _ = mf.random.draw(state)
        return torch.softmax(
            mf.random.normal(key, (len(geometry.losses),), geometry.gramian.dtype), -1
        ), state

    return mf.Rule(lambda losses, key: mf.random.stream(key), update)


def keeps_the_old_state(rule):
    """A rule that computes its next state and returns the one that it was given."""
    return rule._replace(update=lambda geometry, state: (rule.update(geometry, state)[0], state))


def counts_in_python():
    def update(geometry, state):
        count, w = state
        return w / w.sum(), (count + 1, w)

    return mf.Rule(lambda losses, key: (0, torch.ones_like(losses)), update)


def grows():
    return stateful(
        lambda geometry, state: (
            torch.full_like(geometry.losses, 1 / len(geometry.losses)),
            torch.cat([state, state]),
        )
    )


def generator_in_the_state():
    def update(geometry, state):
        w = torch.softmax(
            torch.rand(len(geometry.losses), generator=state, dtype=geometry.gramian.dtype), -1
        )
        return w, state

    return mf.Rule(lambda losses, key: torch.Generator().manual_seed(0), update)


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


def edits_its_input(gramian):
    if len(gramian) == 6:
        gramian[0, 0] = 2 * gramian[0, 0]
    return by_norm(gramian)


def edits_at_call(number):
    calls = []

    def weights(gramian):
        w = by_norm(gramian)
        calls.append(1)
        if len(calls) == number:
            gramian.neg_()
        return w

    return weights


class WrongInBatches(torch.autograd.Function):
    """The identity, but doubled in batches of one size."""

    @staticmethod
    def forward(w, size):
        return w.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, w, size):  # pyright: ignore[reportIncompatibleMethodOverride]
        w = w.movedim(in_dims[0], 0) if in_dims[0] is not None else w
        return w * (2.0 if info.batch_size == size else 1.0), 0


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


BROKEN = {
    **{
        f"wrong for {count} tasks": Broken(
            only(count, first_preferred), "permutation equivariance", "the order", count
        )
        for count in range(4, 9)
    },
    "edits its input for 6 tasks": Broken(
        edits_its_input, "purity", "the rule changes the gramian in place", 6
    ),
    "edits its input at the third call": Broken(
        edits_at_call(3), "purity", "the rule changes the gramian in place"
    ),
    **{
        f"wrong in batches of {size}": Broken(
            lambda g, size=size: WrongInBatches.apply(by_norm(g), size),
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
    "NaN from the fifth update on": Broken(
        breaks_at_update(5), "valid weights", "weights are (nan) (at update 5)", 1
    ),
    "NaN for absent tasks": Broken(
        nan_if_absent(), "absent tasks", "weights are (nan, nan) with task 0 absent", 2
    ),
    "a state that cannot be saved": Broken(
        unsaved_note(), "state round-trip", "the state holds a Note; only tensors"
    ),
    "in the wrong order from 9 tasks on": Broken(
        reversed_from(9), "non-conflict", "a task with a negative rate rises"
    ),
    "absolute epsilon": Broken(
        lambda g: inverse_norms(g, 1e-8),
        "positive homogeneity",
        "when all gradients are multiplied by 1.2e-10",
        2,
    ),
    "a temperature with a unit": Broken(
        softmin, "positive homogeneity", "when all gradients are multiplied by", 2
    ),
    "hidden state": Broken(hidden_state(), "purity", "something is remembered outside the state"),
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
    "NumPy": Broken(
        lambda g: torch.from_numpy(np.diag(g.numpy()).copy()),
        "vmapped == loop",
        "under torch.func.vmap it raises",
    ),
    "batching that mixes": Broken(batch_mean, "vmapped == loop", "in a loop"),
    "a swapped index": Broken(
        swapped, "permutation equivariance", "with the tasks in the order", 3
    ),
    "the first task preferred": Broken(
        lambda g: torch.softmax(torch.arange(len(g), 0, -1).to(g), -1),
        "permutation equivariance",
        "order 1, 0",
        2,
    ),
    "raises": Broken(raises, "valid weights", "raises RuntimeError: no good", 1),
    "raises sometimes": Broken(raises_at_conflict, "valid weights", "raises ArithmeticError", 2),
    "a matrix": Broken(
        lambda g: g, "valid weights", "returned weights of shape [1, 1] for 1 task", 1
    ),
    "one weight too few": Broken(
        lambda g: g[0, 1:], "valid weights", "returned weights of shape [0] for 1 task", 1
    ),
    "T hard-coded": Broken(hard_coded, "valid weights", "raises IndexError", 1),
    "NaN": Broken(lambda g: g[0] * float("nan"), "valid weights", "weights are (nan)", 1),
    "NaN at a zero gradient": Broken(cosine_nan, "valid weights", "weights are (nan, nan)", 2),
    "infinity": Broken(lambda g: 1 / g.diagonal() ** 2, "zero gradients", "weights are (inf)", 1),
    "integers": Broken(
        lambda g: torch.ones(len(g), dtype=torch.int64),
        "valid weights",
        "returned int64 weights for a float64 Gramian",
        1,
    ),
    "always float64": Broken(
        lambda g: torch.full((len(g),), 1 / len(g), dtype=F64),
        "float32",
        "returned float64 weights for a float32 Gramian",
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
    "changes the losses": Broken(mutates_losses, "purity", "the rule changes the losses in place"),
    "changes its state": Broken(
        stateful(lambda geometry, state: (state.add_(1) / len(state), state)),
        "purity",
        "the rule changes its state in place",
    ),
    "global generator": Broken(global_noise, "purity", "draws from torch's global generator"),
    "global generator for nothing": Broken(
        moves_the_generator, "purity", "draws from torch's global generator"
    ),
    "NumPy's generator": Broken(
        numpy_noise(), "purity", "something is remembered outside the state"
    ),
    "drops its random state": Broken(
        drops_its_stream,
        "state round-trip",
        "the state is Stream(key=int64[], drawn=int64[]) after init, but () after an update",
    ),
    "key not advanced": Broken(
        forgets_to_advance, "state round-trip", "every step draws the same numbers"
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
    "a generator in the state": Broken(
        generator_in_the_state, "state round-trip", "the state holds a Generator; only tensors"
    ),
    "a state that grows": Broken(grows, "state round-trip", "after an update"),
    "no derivative": Broken(
        detached, "differentiability", "torch.func.grad gives a slope of 0 along one line", 2
    ),
    "a jump": Broken(halves, "continuity", "the direction jumps from", 2),
    "NaN swallowed": Broken(nan_dropped, "NaN", "although the gradient of task 0 is NaN", 2),
    "negative weights": Broken(
        lambda g: -torch.full_like(g[0], 1 / len(g)), "convex weights", "weights (-1) sum to -1", 1
    ),
    "a sum": Broken(
        lambda g: torch.ones_like(g[0]),
        "identical tasks",
        "all gradients are (1), but the direction is (2)",
        2,
    ),
}
