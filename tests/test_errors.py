# pyright: reportArgumentType=false
"""Bad input: every error names the argument, says what was wrong and what to do."""

import inspect
from collections import UserDict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

import mtlfunc as mf
from mtlfunc.core.expect import reads_of
from mtlfunc.studies.arena import SHORT
from tests.support.problems import BATCH, PARAMS, scalars, vector

G = torch.eye(2, dtype=torch.float64)


NET = nn.Linear(2, 2)
INFO = mf.Info(torch.ones(2), G, torch.ones(2) / 2, torch.ones(2) / 2, (), {})
FROZEN = nn.Linear(2, 2).requires_grad_(False)
META = nn.Linear(2, 2, device="meta")
OTHER = nn.Linear(2, 2)
RULE = mf.mgda()


def made(form, module=NET, rule=RULE):
    """A step by a balancer on losses in another form."""
    balancer = mf.Balancer(module, rule)
    return balancer.backward(form(module(torch.ones(2, device=module.weight.device))))


def pure(form, params=None):
    step = mf.balance(
        lambda params, batch: form(functional_call(NET, params, (batch,))), mf.mgda(), mf.jacobian()
    )
    return step.init(mf.parameters(NET) if params is None else params, torch.ones(2))


class Nested(UserDict):
    """As a TensorDict: a mapping with no truth value."""

    def __bool__(self):
        raise RuntimeError("Converting a tensordict to boolean value is not permitted")

    def flatten_keys(self, separator):
        raise NotImplementedError


FORMS = {
    "None": (lambda out: None, "returns nothing"),
    "a None": (lambda out: [out[0], None], r"torch.zeros\(\(\)\) and present="),
    "numpy": (lambda out: out.detach().numpy(), r"without \.item\(\), \.detach\(\) or \.numpy"),
    "numpy in a list": (lambda out: [out[0], out[1].detach().numpy()], "pass tensors with"),
    "floats": (lambda out: out.detach().tolist(), "pass tensors with"),
    "generator": (lambda out: (x for x in out), "make it a list"),
    "set": (lambda out: set(out), "make it a list"),
    "values": (lambda out: {"a": out[0]}.values(), "make it a list"),
    "meta": (lambda out: out.to("meta"), "on the meta device"),
}
PLAIN = mf.descend(vector, mf.mean(), mf.losses_only(), mf.sgd(0.1))
MATRICES = {"w": torch.ones(2, 3, 4)}
COUNTS = {
    "steps": (
        mf.solvers.frank_wolfe,
        mf.solvers.projected_gradient,
        lambda count: mf.muon.nuclear(MATRICES, steps=count),
        lambda count: mf.sdmgrad(steps=count),
    ),
    "nodes": (lambda count: mf.diagnostics.curvature(vector, PARAMS, BATCH, nodes=count),),
    "size": (lambda count: mf.diagnostics.noise_scale(G[0], G[0, 0], size=count),),
    "chunk_size": (lambda count: mf.jacobian(chunk_size=count),),
    "points_at_once": (lambda count: mf.grid(abs, {"a": G[0]}, points_at_once=count),),
    "n": (mf.subset,),
    "epoch": (mf.dwa,),
    "byzantine": (mf.krum,),
    "select": (lambda count: mf.krum(0, count),),
    "search": (lambda count: mf.pareto_mtl(search=count),),
    "graphs": (lambda count: mf.capture(PLAIN, graphs=count),),
}
RANGES = {  # what is said of numbers outside of a range, and who refuses them
    "> 0": ((0.0, -1.0), {
        "lr": (mf.uw, mf.imtl_l, mf.modo, mf.moco, mf.excess_mtl, mf.famo, mf.sgd, mf.adam,
            lambda lr: mf.gradnorm(1.0, lr)),
        "alpha": (mf.fairgrad,), "mu": (mf.stch,), "eta": (mf.align,),
        "floor": (lambda floor: mf.gradnorm(1.0, floor=floor),),
        "max_norm": (lambda norm: mf.nash_mtl(max_norm=norm),),
        "temperature": (partial(mf.dwa, 1),),
    }),
    ">= 0, got": ((-0.1, float("nan")), {
        "alpha": (mf.gradnorm,), "c": (mf.cagrad, partial(mf.solvers.cagrad, G)),
        "damping": (mf.physics.gauss_newton,), "theta": (mf.pbi,), "penalty": (mf.cosmos,),
        "decay": (lambda decay: mf.moco(decay=decay), lambda decay: mf.famo(decay=decay)),
        "eps": (lambda eps: mf.famo(eps=eps), lambda eps: mf.gls(eps=eps)),
        "lr": (lambda lr: mf.diagnostics.curvature(vector, PARAMS, BATCH, lr=lr),),
        "rho": (lambda rho: mf.modo(rho=rho),), "tau": (lambda tau: at(mf.pcd(tau=tau)),),
        "margin": (partial(mf.safe, mf.mean()),), "momentum": (partial(mf.sgd, 0.1),),
    }),
    ">= 0 and < 1": ((1.0, -0.1), {
        "beta": (mf.gradvac, lambda beta: at(mf.pcd(beta=beta))), "c": (mf.conicgrad,),
        "decay": (partial(mf.momentum, mf.mgda()),),
        "momentum": (lambda momentum: mf.sdmgrad(momentum=momentum),),
    }),
    r"(> 0|\(0, 1\])": ((0.0, 1.5), {"rate": (lambda rate: mf.moving_average(rate=rate),)}),
    r"\[0, 1\]": ((-0.1, 1.5), {"leak": (mf.graddrop,)}),
}  # fmt: skip
SOLVED = {
    "mgda": mf.mgda,
    "cagrad": partial(mf.cagrad, 0.4),
    "upgrad": lambda solver: mf.upgrad(solver=solver),
    "dualproj": lambda solver: mf.dualproj(solver=solver),
    "epo": lambda solver: mf.epo(solver=solver),
    "pcd": lambda solver: mf.pcd(solver=solver),
    "pareto_mtl": lambda solver: mf.pareto_mtl(solver=solver),
    "stationarity": partial(mf.diagnostics.stationarity, G),
}
STATES = {
    "a number": ({"x": [0.5]}, r"state\['x'\]\[0\] from init of .* is a float"),
    "None": (None, "state from init of .* is a NoneType"),
    "a name": (mf.random.Stream(G, "x"), r"state\.drawn from init of .* is a str"),
}
FORMS_AFTER = {
    "another key": ({"x": G}, {"y": G}),
    "another length": ((G, G), (G,)),
    "another shape": ({"x": G[0]}, {"x": G}),
    "a number": ({"x": G[0, 0]}, {"x": 1.0}),
}


def remembering(first, following):
    """A rule whose state is `first`, then `following`."""
    return mf.Rule(lambda *_: first, lambda geometry, state: (geometry.preference, following))


def one_step(rule, params=PARAMS):
    step = mf.balance(vector, rule, mf.jacobian("trunk.*"))
    return step.update(params, BATCH, step.init(params, BATCH))


def at(rule, losses=(1.0, 1.0)):
    return mf.weights(rule, torch.eye(2), torch.tensor(losses))


LOSSES = {  # what is said of losses in a form that is none
    r"losses_fn: .*\[\]": lambda p, b: vector(p, b).sum(),
    r"losses_fn: .*\[1, 3\]": lambda p, b: vector(p, b)[None],
    r"losses_fn: .*\[0\]": lambda p, b: vector(p, b)[:0],
    "losses_fn: .*scalar": lambda p, b: (vector(p, b)[:1], vector(p, b)[0], vector(p, b)[0]),
    "losses_fn: .*dict": lambda p, b: {},
    "losses_fn: .*float": lambda p, b: 3.0,
}


def of_params(extra, call=mf.task_gradients, **given):
    return call(vector, PARAMS | extra, BATCH, **given)


VALUES = {
    "another dtype": (lambda: of_params({"extra": torch.zeros(1)}),
        r"'extra' is torch\.float32.*one dtype"),
    "another device": (lambda: of_params({"extra": torch.zeros(1, device="meta").double()}),
        "'extra' is on meta"),
    "shared of nothing": (lambda: of_params({}, mf.task_gramian, shared="nothing"),
        "shared='nothing' matches no parameter; there are: trunk"),
    "chunks of 0": (lambda: of_params({}, chunk_size=0), "chunk_size"),
    "engine of a Gramian": (lambda: of_params({}, mf.task_gramian, engine="layers"),
        "engine='layers'"),
    "orders of floats": (lambda: mf.pcgrad(torch.zeros(2, 2)), "orders: "),
    "too many byzantine": (lambda: mf.weights(mf.krum(2), torch.eye(6)), "byzantine: "),
    "tau of a task below 0": (lambda: at(mf.pcd(tau=torch.tensor([0.1, -0.1]))), "tau: "),
    "tau of other tasks": (lambda: at(mf.pcd(tau=torch.ones(3))), "tau: "),
    "primary": (lambda: at(mf.pcd(primary=2)), "primary: "),
    "others below 0": (lambda: at(mf.pareto_mtl(others=torch.tensor([[1.0, -1.0]]))), "others: "),
    "others of nothing": (lambda: at(mf.pareto_mtl(others=torch.zeros(1, 2))), "others: "),
    "others of other tasks": (lambda: at(mf.pareto_mtl(others=torch.ones(1, 3))), "others: "),
    "ray below 0": (lambda: at(mf.pareto_mtl(ray=torch.tensor([1.0, -1.0]))), "ray: "),
    "reference of 0": (lambda: at(mf.gradnorm(1.0, reference=torch.tensor([0.0, 1.0]))),
        "initial loss"),
    "preference of align": (lambda: mf.align(0.1, preference=torch.ones(3)), "preference: "),
    "seed too large": (lambda: mf.random.key(2**63), "key: "),
    "by": (lambda: mf.normalize(mf.mgda(), "l2"), "by="),
    "losses below 0": (lambda: at(mf.normalize(mf.mgda(), "loss"), [1.0, -1.0]), "normalize: "),
    "scale": (lambda: mf.aligned_mtl(scale="mean"), "scale="),
    "rescale of nash_mtl": (lambda: mf.nash_mtl(rescale="mean"), "rescale="),
    "rescale of fairgrad": (lambda: mf.fairgrad(1.0, rescale="mean"), "rescale="),
    "delta_m of nothing": (lambda: mf.diagnostics.delta_m({}, {}, {}), "same names"),
    "losses of another dtype": (lambda: mf.aggregate(mf.mean(), torch.eye(2), G[0]), "losses "),
    "weights of another dtype": (lambda: mf.solvers.dual_cone(G, torch.ones(2)), "weights "),
    "weights that are infinite": (lambda: mf.solvers.dual_cone(G, G[0] / 0), "weights: "),
    "c that is nan": (lambda: mf.solvers.cagrad(G, float("nan")), "c: "),
    "preference of cagrad": (lambda: mf.solvers.cagrad(G, 0.4, preference=-G[0]), "preference: "),
    "modules of other shapes": (lambda: mf.stack([NET, nn.Linear(3, 2)]), "modules: "),
    "no modules": (lambda: mf.stack([]), "at least one"),
    "a state of another dtype": (
        lambda: mf.adam(0.1).update({"a": G}, mf.adam(0.1).init({"a": G.float()}), {"a": G}),
        "state: "),
    "weights that are nan": (lambda: mf.solvers.certify(mf.solvers.min_norm(G), G[0] * torch.nan),
        "weights"),
    "curves in a list": (lambda: mf.plot.gap([1.0]), "curves: "),
    "frozen": (lambda: mf.Balancer(FROZEN, mf.mgda()), "shared:"),
    "meta": (lambda: made(list, META), "params: on the meta device.*to_empty"),
    "meta, pure": (lambda: pure(list, mf.parameters(META)), "on the meta device"),
    "shared of another": (lambda: mf.Balancer(NET, mf.mgda(), OTHER), "shared:"),
    "shared of another's parameters": (
        lambda: mf.Balancer(NET, mf.mgda(), list(OTHER.parameters())), "shared:"),
    "seed shape": (lambda: mf.random.key(torch.arange(2)), "key: .*vmap"),
    "gramian shape": (lambda: mf.weights(mf.mgda(), torch.ones(2, 3)), "gramian:"),
    "gramian empty": (lambda: mf.weights(mf.mgda(), torch.ones(0, 0)), "gramian:"),
    "gramian batched": (lambda: mf.weights(mf.mgda(), torch.ones(3, 2, 2)), "gramian: .*vmap"),
    "gramian nan": (lambda: mf.weights(mf.mgda(), G * float("nan")), "gramian:"),
    "gramian asymmetric": (lambda: mf.solvers.min_norm(torch.tensor([[1.0, 0.5], [0.2, 1.0]])),
        "gramian:"),
    "losses dtype": (lambda: mf.weights(mf.gradnorm(1.0), G, torch.ones(2)), "losses"),
    "losses shape": (lambda: at(mf.gradnorm(1.0), [1.0, 1.0, 1.0]), "losses:"),
    "losses nan": (lambda: at(mf.gradnorm(1.0), [1.0, float("nan")]), "losses:"),
    "jacobian shape": (lambda: mf.aggregate(mf.mgda(), torch.ones(3)), r"jacobian: .*\[3\]"),
    "jacobian inf": (lambda: mf.aggregate(mf.mgda(), torch.tensor([[1.0], [float("inf")]])),
        "jacobian:"),
    "c vector": (lambda: mf.cagrad(torch.ones(2)), "c: .*vmap"),
    "rescale": (lambda: mf.cagrad(0.4, rescale="2"), "rescale="),
    "initial losses": (lambda: at(mf.gradnorm(1.0), [1.0, 0.0]),
        "initial losses > 0, got .*reference="),
    "reference": (lambda: at(mf.gradnorm(1.0, reference=torch.ones(3))), "reference:"),
    **{
        f"preference {p}": (lambda p=p: mf.weights(mf.mean(preference=p), G), "preference: ")
        for p in (-G[0], 0 * G[0], torch.ones(3), torch.ones(2, dtype=torch.int64))
    },
    "orders rows": (lambda: mf.pcgrad(torch.zeros(2, 2, dtype=torch.int64)), "orders:"),
    "orders tasks": (lambda: mf.weights(mf.pcgrad(torch.arange(3).expand(3, 3)), G), "orders:"),
    "epoch": (lambda: mf.dwa(0), "epoch: .*>= 1"),
    "warmup of nothing": (lambda: mf.stch(1.0, warmup=(0, 0)), "warmup: "),
    "warmup and reference": (lambda: mf.stch(1.0, warmup=(1, 1), reference=torch.ones(4)),
        "warmup: .*no reference"),
    "reference of pbi": (lambda: at(mf.pbi(reference=torch.ones(3))), "reference:"),
    "reference of stch": (lambda: at(mf.stch(1.0, reference=torch.ones(3))), "reference:"),
    "lower": (lambda: at(mf.famo(full_batch=True, lower=torch.ones(3))),
        r"lower: expected shape \[2\]"),
    "losses at their bounds": (lambda: at(mf.famo(full_batch=True, lower=torch.ones(2))),
        "famo .less their lower bounds. .* need losses > 0"),
    "leaks": (lambda: mf.graddrop(torch.ones(3))(mf.random.key(0), {"x": torch.ones(4, 1)}),
        "leak:"),
    "rate in a tensor": (lambda: mf.moving_average(rate=torch.tensor(1.5)),
        r"rate: expected a number in \(0, 1\]"),
    "heads": (lambda: mf.jacobian("*", heads="none"), "heads="),
    "engine": (lambda: mf.jacobian("*", engine="layers"), "engine='layers'"),
    **{
        f"after of {what}": (
            lambda after=after: mf.diagnostics.predicted_change(vector, PARAMS, after, BATCH),
            "after: names or shapes",
        )
        for what, after in (("names", {"x": G}), ("shapes", PARAMS | {"trunk.0.bias": G[0]}))
    },
    "lengths of other tasks": (lambda: mf.diagnostics.noise_scale(torch.ones(3, 2), torch.ones(3)),
        "samples: expected the lengths"),
    "one length": (lambda: mf.diagnostics.noise_scale(G[0][:1], G[0, 0]), "at least two"),
    "lengths, tasks": (lambda: mf.diagnostics.noise_scale(G, G[0], tasks=2), "no tasks="),
    "size of 0": (lambda: mf.diagnostics.noise_scale(G[0], G[0, 0], size=0), "size"),
    "cosines of nan": (
        lambda: mf.diagnostics.cosines(torch.tensor([[float("nan"), 0.0], [0.0, 1.0]])),
        r"gramian: NaN or infinite entries in rows \[0\]"),
    "batches of two sizes": (lambda: mf.sample_gradients(vector, PARAMS, (BATCH[0], BATCH[1][:3])),
        r"batch: .*first axis"),
    "mixed precisions": (
        lambda: mf.task_gramian(vector, PARAMS | {"z": torch.ones(2) * 1j}, BATCH), "params:"),
    "rows of two batches": (lambda: mf.second_evaluation(mf.double_sampling()), "of one batch"),
    "rows of mixtures": (lambda: mf.second_evaluation(mf.jacobian(mix=mf.subset(2))), "mix="),
    "mask by layers": (lambda: mf.jacobian(mask=mf.graddrop(), engine="layerwise"), "mask"),
    "step rule": (lambda: mf.solvers.frank_wolfe(10, "exact"), "step="),
    "too many faces": (lambda: mf.solvers.faces()(mf.solvers.min_norm(torch.eye(7))), "faces:"),
    "weights of another shape": (lambda: mf.aggregate(mf.stateless(lambda gramian: gramian), G),
        "rule:"),
    "complex weights": (lambda: mf.aggregate(mf.stateless(lambda gramian: gramian[0] * 1j), G),
        "rule:"),
    "a rule reads a name that nothing measures": (
        lambda: mf.balance(vector, mf.mean()._replace(reads=frozenset({"grammian"})),
        mf.jacobian()), "a probe of your own that measures 'grammian'"),
    "reduction": (lambda: mf.balance(vector, mf.mean(), mf.losses_only(), reduction="none"),
        "reduction="),
    "has_aux missing": (
        lambda: mf.descend(lambda p, b: (vector(p, b), 1), mf.mean(), mf.losses_only(),
        mf.sgd(0.1)).init(PARAMS, BATCH), "pass has_aux=True"),
    "has_aux wrong": (
        lambda: mf.descend(scalars, mf.mean(), mf.losses_only(), mf.sgd(0.1),
        has_aux=True).init(PARAMS, BATCH), "has_aux="),
    "delta_m": (lambda: mf.diagnostics.delta_m({"a": 1.0}, {"b": 1.0}, {"a": True}), "same names"),
    "delta_m zero": (lambda: mf.diagnostics.delta_m({"a": 1.0}, {"a": 0.0}, {"a": True}),
        "baselines:"),
    "not a Gramian": (lambda: mf.weights(mf.pcgrad(), G - 3 * G.flip(0)), "gramian:"),
    "not symmetric": (lambda: mf.weights(mf.imtl_g(), torch.ones_like(G).triu()), "gramian:"),
    "no tasks": (lambda: mf.task_gramian(lambda p, b: [], PARAMS, BATCH), "losses_fn:"),
    "no samples": (lambda: mf.sample_gramian(lambda p, b: vector(p, b)[:0], PARAMS, BATCH),
        "losses_fn:"),
    "vmap over no Gramians": (lambda: vmap(lambda x: mf.weights(mf.mgda(), x))(G.expand(0, 2, 2)),
        "gramian:"),
    "vmap over no networks": (
        lambda: vmap(lambda w: mf.task_gramian(lambda p, b: p["w"] ** 2, {"w": w}, ()))(G[:0]),
        "losses_fn:"),
}  # fmt: skip
TYPES = {
    "an integer": (lambda: of_params({"steps": torch.zeros((), dtype=torch.int64)}),
        r"params\['steps'\] .*int64.*leave it out"),
    "a length that is no tensor": (lambda: mf.diagnostics.noise_scale(G[0], 1.0), "^total: "),
    "seed of words": (lambda: mf.random.key("0"), "key: "),
    "seed of truth": (lambda: mf.random.key(True), "key: "),
    "seed of a tensor of truth": (lambda: mf.random.key(torch.tensor(True)), "key: "),
    "weightings in a list": (
        lambda: mf.task_gramian(vector, PARAMS, BATCH, weightings=[[1.0, 2.0, 3.0]]),
        "weightings: "),
    "reads of a name": (lambda: reads_of(mf.mgda()._replace(reads="gramian")), "rule: reads is"),
    "an optimizer as rule": (lambda: mf.Balancer(NET, torch.optim.SGD(NET.parameters(), 0.1)),
        "rule:"),
    "torch's class": (lambda: mf.famo(optimizer=torch.optim.Adam), "optimizer: got torch.*Adam"),
    "frozen, pure": (lambda: pure(list, mf.parameters(FROZEN)), "params: .*frozen"),
    "batch first": (lambda: mf.balance(lambda batch, params: G[0], mf.mgda(), mf.jacobian()),
        "losses_fn:"),
    "batch first in init": (
        lambda: mf.balance(vector, mf.mgda(), mf.jacobian()).init(BATCH, PARAMS), "params:"),
    "names": (lambda: pure(list, dict(enumerate(mf.parameters(NET).values()))), "params:"),
    "a tensordict": (lambda: mf.task_gramian(vector, Nested(PARAMS), BATCH), "params:"),
    "axes": (lambda: mf.grid(lambda a: a, [1, 2]), "axes, dims: expected dicts by name"),
    "optimizer": (lambda: mf.Balancer(nn.Linear(2, 2), mf.mgda(), metric=mf.adam(1e-3)), "metric:"),
    "seed": (lambda: mf.random.key(1.5), "key: expected an integer seed, got float"),
    "seed tensor": (lambda: mf.random.key(torch.ones(2)), "key: .*float32"),
    "gramian integer": (lambda: mf.weights(mf.mgda(), torch.ones(2, 2).long()), "gramian:"),
    "c string": (lambda: mf.cagrad("0.4"), "c: .*str"),
    "wrong problem": (lambda: mf.solvers.frank_wolfe(10)(mf.solvers.dual_cone(G, G[0])),
        "frank_wolfe takes min_norm and cagrad"),
    "rows of no layer": (lambda: mf.muon.nuclear(G), "rows: expected .*dict"),
    "rates of no tensor": (lambda: mf.muon.nuclear({"w": torch.ones(2, 3, 4)}, carried=[0.0]),
        "carried:"),
    "not a problem": (lambda: mf.solvers.faces()(G), "problem: expected min_norm"),
    "stateless": (lambda: mf.stateless(lambda: G), r"stateless: expected f\(gramian\)"),
    "params": (lambda: mf.task_gradients(vector, torch.nn.Linear(2, 1), BATCH), "params:"),
    "params leaf": (lambda: mf.task_gradients(vector, {"w": 1.0}, BATCH), r"params\['w'\]:"),
    "losses that exist": (lambda: mf.task_jacobian(G[0], PARAMS), "losses_fn: expected a function"),
    "a generator": (lambda: mf.explain_gramian(vector, NET.parameters(), BATCH), "params:"),
    "sparse Gramian": (lambda: mf.weights(mf.mean(), G.to_sparse()), "gramian:"),
}  # fmt: skip
CASES = {
    **{name: (call, ValueError, words) for name, (call, words) in VALUES.items()},
    **{name: (call, TypeError, words) for name, (call, words) in TYPES.items()},
    **{
        words: (partial(mf.task_gradients, f, PARAMS, BATCH), ValueError, words)
        for words, f in LOSSES.items()
    },
    **{
        f"a state with {kind}": (partial(one_step, remembering(state, ())), TypeError, message)
        for kind, (state, message) in STATES.items()
    },
    **{
        f"a next state with {kind}": (partial(one_step, remembering(*two)), ValueError, "rule:")
        for kind, two in FORMS_AFTER.items()
    },
    **{
        f"solver of {name}: {kind}": (partial(make, value), TypeError, "^solver:")
        for name, make in SOLVED.items()
        for kind, value in (
            ("a preference", torch.ones(2)),
            ("a name", "exact"),
            ("a rule", mf.mgda()),
            ("not called", mf.solvers.auto),
        )
    },
    **{
        f"{name}, {number}: {type(x).__name__}": (partial(call, x), TypeError, f"^{name}: ")
        for number, (name, call) in enumerate(
            (
                ("jacobian", partial(mf.aggregate, mf.mgda())),
                ("gramian", partial(mf.weights, mf.mgda())),
                ("losses", partial(mf.weights, mf.mean(), G)),
                ("losses", partial(mf.aggregate, mf.mean(), G)),
                ("weights", partial(mf.solvers.dual_cone, G)),
                ("preference", lambda p: mf.weights(mf.mean(preference=p), G)),
            )
        )
        for x in ([[1.0, 0.0], [0.0, 1.0]], np.eye(2))
    },
    **{
        f"{name} of {x}, {number}": (partial(make, x), ValueError, f"^{name}: .*{words}")
        for words, (numbers, named) in RANGES.items()
        for name, makers in named.items()
        for number, make in enumerate(makers)
        for x in numbers
    },
    **{
        f"{name} of {count!r}, {number}": (partial(make, count), ValueError, f"^{name}: ")
        for name, makers in COUNTS.items()
        for number, make in enumerate(makers)
        for count in (-1, 1.5, True, "3", torch.tensor(2.0))
    },
    **{
        f"losses {name}, {kind.__name__}": (partial(kind, form), ValueError, f"losses.*{words}")
        for name, (form, words) in FORMS.items()
        for kind in (made, pure)
    },
    "log_dict of several": (
        lambda: vmap(lambda x: mf.log_dict(INFO._replace(losses=x)))(torch.ones(2, 2)),
        RuntimeError,
        "log_dict:",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_error_names_the_argument(case):
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize(
    ("edit", "following", "where"),
    [
        (lambda geometry: None, lambda state: {"n": state["n"].add_(1)}, r"state\['n'\]"),
        (lambda geometry: None, lambda s: s.update(n=s["n"] + 1) or s, r"state\['n'\]"),
        (lambda geometry: geometry.gramian.diagonal().mul_(2), dict, r"geometry\.gramian"),
        (lambda geometry: geometry.losses.detach().add_(1), dict, r"geometry\.losses"),
    ],
)
def test_a_rule_that_writes_into_what_it_is_given_is_named(edit, following, where):
    def update(geometry, state):
        edit(geometry)
        return geometry.preference, following(state)

    rule = mf.Rule(lambda losses, key: {"n": torch.zeros(())}, update)
    message = rf"update of Rule\(.*update\) wrote into {where}, which .*x\.clone\(\)"
    with pytest.raises(RuntimeError, match=message):
        one_step(rule)
    with pytest.raises(RuntimeError, match=message):
        vmap(partial(one_step, rule))({k: torch.stack([x, 2 * x]) for k, x in PARAMS.items()})
    with pytest.raises(RuntimeError, match=message):
        made(lambda out: list(out.square()), rule=rule)


def test_a_state_may_change_the_order_of_its_keys_and_its_dtype():
    one_step(remembering({"x": G, "y": G[0]}, {"y": G[0].float(), "x": G}))


def test_every_rule_with_a_solver_is_in_the_table():
    rules = {name: inspect.signature(getattr(mf, name)).parameters for name in mf.rules.__all__}
    taking = {name for name, given in rules.items() if "solver" in given}
    assert taking == SOLVED.keys() - {"stationarity"}


def test_counts_may_be_of_other_libraries():
    problem = mf.solvers.min_norm(torch.diag(torch.tensor([1.0, 4.0])))
    for count in (np.int64(5), torch.tensor(5)):
        found = mf.solvers.frank_wolfe(count)(problem)
        torch.testing.assert_close(found.weights, mf.solvers.frank_wolfe(5)(problem).weights)


def test_physics_arguments_of_another_type():
    params, x = {"a": torch.ones(1)}, torch.rand(3, 2)
    for points in (x[0], x[:0], x.long(), [[1.0]]):
        with pytest.raises(ValueError, match="x: expected floating points"):
            mf.physics.laplacian(lambda p, x: x, params, points)  # pyright: ignore
    with pytest.raises(NotImplementedError, match=r"laplacian.*takes no jets"):  # of jets
        mf.physics.laplacian(lambda p, x: mf.physics.laplacian(lambda p, x: x, p, x)[0], params, x)
    for order in (0, 4, 1.5, True):
        with pytest.raises(ValueError, match="order: expected 1, 2 or 3"):
            mf.physics.directional(lambda p, x: x, params, x, x[0], order)  # pyright: ignore
    with pytest.raises(ValueError, match=r"direction: .* \[2\] or \[3, 2\]"):
        mf.physics.directional(lambda p, x: x, params, x, torch.ones(3), 1)
    with pytest.raises(ValueError, match=r"factors: expected a tensor \[factor\]"):
        mf.physics.line_search(lambda p, b: p["a"].sum(), params, params, (), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"expected a list of functions .* got function"):
        mf.physics.kernel_traces(lambda p, b: b, mf.losses_only())  # pyright: ignore
    with pytest.raises(ValueError, match=r"trace='max': expected one of 'sum', 'mean'"):
        mf.physics.kernel_traces([lambda p, b: b], mf.losses_only(), trace="max")  # pyright: ignore


def test_gramians_of_whole_numbers_are_refused():
    x, params = torch.ones(2, 2), {"w": torch.ones(2)}
    for call in (mf.task_gramian, mf.sample_gramian, mf.sample_norms):
        for engine in ("layerwise", "rows"):
            with pytest.raises(TypeError, match=r"gramian_dtype: expected .* got torch.int64"):
                call(lambda p, x: x @ p["w"], params, x, engine=engine, gramian_dtype=torch.int64)


def test_arenas_of_nothing_are_refused():
    refused = {"tuning": [0, "3"], "seeds": [0, 2.5], "budget": [-1.0, float("nan")]}
    for name, value in ((name, value) for name, values in refused.items() for value in values):
        with pytest.raises(ValueError, match=rf"^settings\.{name}: expected a .* got "):
            mf.arena(mf.mgda(), problems="vlmop2", settings=SHORT._replace(**{name: value}))
    with pytest.raises(TypeError, match=r"^settings: expected Settings.* got int"):
        mf.arena(mf.mgda(), problems="vlmop2", settings=3)  # pyright: ignore
