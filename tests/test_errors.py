# pyright: reportArgumentType=false
"""Bad input: every error names the argument, says what was wrong and what to do."""

import inspect
import re
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


@pytest.mark.parametrize(
    ("losses_fn", "message"),
    [
        (lambda p, b: vector(p, b).sum(), r"losses_fn: .*\[\]"),
        (lambda p, b: vector(p, b)[None], r"losses_fn: .*\[1, 3\]"),
        (lambda p, b: vector(p, b)[:0], r"losses_fn: .*\[0\]"),
        (lambda p, b: (vector(p, b)[:1], vector(p, b)[0], vector(p, b)[0]), "losses_fn: .*scalar"),
        (lambda p, b: {}, "losses_fn: .*dict"),
        (lambda p, b: 3.0, "losses_fn: .*float"),
    ],
)
def test_bad_losses_are_named(losses_fn, message):
    with pytest.raises(ValueError, match=message):
        mf.task_gradients(losses_fn, PARAMS, BATCH)


def test_bad_parameters_are_named():
    with pytest.raises(TypeError, match=r"params\['steps'\] .*int64.*leave it out"):
        mf.task_gradients(vector, PARAMS | {"steps": torch.zeros((), dtype=torch.int64)}, BATCH)
    with pytest.raises(ValueError, match=r"'extra' is torch\.float32.*one dtype"):
        mf.task_gradients(vector, PARAMS | {"extra": torch.zeros(1)}, BATCH)
    with pytest.raises(ValueError, match="'extra' is on meta"):
        mf.task_gradients(
            vector, PARAMS | {"extra": torch.zeros(1, device="meta", dtype=torch.float64)}, BATCH
        )
    with pytest.raises(ValueError, match="shared='nothing' matches no parameter; there are: trunk"):
        mf.task_gramian(vector, PARAMS, BATCH, shared="nothing")
    with pytest.raises(ValueError, match="chunk_size"):
        mf.task_gradients(vector, PARAMS, BATCH, chunk_size=0)
    with pytest.raises(ValueError, match="engine='layers'"):
        mf.task_gramian(
            vector,  # pyright: ignore[reportArgumentType]
            PARAMS,
            BATCH,
            engine="layers",
        )


NET = nn.Linear(2, 2)
INFO = mf.Info(torch.ones(2), G, torch.ones(2) / 2, torch.ones(2) / 2, (), {})
FROZEN = nn.Linear(2, 2).requires_grad_(False)
META = nn.Linear(2, 2, device="meta")
OTHER = nn.Linear(2, 2)
RULE = mf.mgda()


def made(form, module=NET, rule=RULE):
    """A step by a balancer on losses in another form."""
    balancer = mf.Balancer(module, rule)
    out = module(torch.ones(2, device=module.weight.device))
    return balancer.backward(form(out))


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
    "a None": (lambda out: [out[0], None], "a loss of 0 and present="),
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
    "chunk_size": (lambda count: mf.jacobian(chunk_size=count),),
    "points_at_once": (lambda count: mf.grid(abs, {"a": G[0]}, points_at_once=count),),
    "n": (mf.subset,),
    "epoch": (mf.dwa,),
    "byzantine": (mf.krum,),
    "select": (lambda count: mf.krum(0, count),),
    "search": (lambda count: mf.pareto_mtl(search=count),),
    "graphs": (lambda count: mf.capture(PLAIN, graphs=count),),
}
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
    "another key": (
        {"x": G},
        {"y": G},
        r"state\['x'\] was \[2, 2\], is absent; state\['y'\] was absent",
    ),
    "another length": ((G, G), (G,), r"state\[1\] was \[2, 2\], is absent"),
    "another shape": ({"x": G[0]}, {"x": G}, r"state\['x'\] was \[2\], is \[2, 2\]"),
    "a number": ({"x": G[0, 0]}, {"x": 1.0}, r"state\['x'\] was \[\], is float"),
}


def remembering(first, following):
    """A rule whose state is `first`, then `following`."""
    return mf.Rule(
        lambda losses, key: first, lambda geometry, state: (geometry.preference, following)
    )


def one_step(rule):
    step = mf.balance(vector, rule, mf.jacobian("trunk.*"))
    return step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))


CASES = {
    **{
        f"a state with {kind}": (partial(one_step, remembering(state, ())), TypeError, message)
        for kind, (state, message) in STATES.items()
    },
    **{
        f"a next state with {kind}": (
            partial(one_step, remembering(first, following)),
            ValueError,
            f"rule: the state from update of .*{message}.* that init returns",
        )
        for kind, (first, following, message) in FORMS_AFTER.items()
    },
    **{
        f"solver of {name}: {kind}": (
            partial(make, value),
            TypeError,
            rf"^solver: .*such as mtlfunc.solvers.auto\(\), got {words}$",
        )
        for name, make in SOLVED.items()
        for kind, value, words in (
            ("a preference", torch.ones(2), "an object of type Tensor"),
            ("a name", "exact", "an object of type str"),
            ("a rule", mf.mgda(), "a rule"),
            ("not called", mf.solvers.auto, "an object of type function"),
        )
    },
    **{
        f"{name} that is a {type(value).__name__}, {number}": (
            partial(call, value),
            TypeError,
            rf"^{name}: expected a tensor {re.escape(shape)}, got .*; use torch.as_tensor",
        )
        for number, (name, shape, call) in enumerate(
            (
                ("jacobian", "[task, param]", partial(mf.aggregate, mf.mgda())),
                ("gramian", "[T, T]", partial(mf.weights, mf.mgda())),
                ("losses", "[task]", partial(mf.weights, mf.mean(), G)),
                ("losses", "[task]", partial(mf.aggregate, mf.mean(), G)),
                ("weights", "[task]", partial(mf.solvers.dual_cone, G)),
                ("preference", "[task]", lambda p: mf.weights(mf.mean(preference=p), G)),
            )
        )
        for value in ([[1.0, 0.0], [0.0, 1.0]], np.eye(2))
    },
    **{
        f"{name} of {count!r}, {number}": (
            partial(make, count),
            ValueError,
            rf"^{name}: expected (None or )?a whole number >= [01], got {re.escape(repr(count))}$",
        )
        for name, makers in COUNTS.items()
        for number, make in enumerate(makers)
        for count in (-1, 1.5, True, "3", torch.tensor(2.0))
    },
    **{
        f"losses {name}, {kind.__name__}": (partial(kind, form), ValueError, f"losses.*{words}")
        for name, (form, words) in FORMS.items()
        for kind in (made, pure)
    },
    "an optimizer as rule": (
        lambda: mf.Balancer(NET, torch.optim.SGD(NET.parameters(), 0.1)),
        TypeError,
        r"rule: got torch\.optim\.SGD, .*leaves the optimizer to your loop",
    ),
    "frozen": (
        lambda: mf.Balancer(FROZEN, mf.mgda()),
        ValueError,
        "shared: there is no parameter .*frozen",
    ),
    "frozen, pure": (lambda: pure(list, mf.parameters(FROZEN)), TypeError, "params: .*frozen"),
    "meta": (lambda: made(list, META), ValueError, "params: on the meta device.*to_empty"),
    "meta, pure": (lambda: pure(list, mf.parameters(META)), ValueError, "on the meta device"),
    "batch first": (
        lambda: mf.balance(lambda batch, params: G[0], mf.mgda(), mf.jacobian()),
        TypeError,
        r"losses_fn: expected a function of \(params, batch\), in this order",
    ),
    "batch first in init": (
        lambda: mf.balance(vector, mf.mgda(), mf.jacobian()).init(BATCH, PARAMS),
        TypeError,
        r"params: expected a dict .*before the batch",
    ),
    "names": (
        lambda: pure(list, dict(enumerate(mf.parameters(NET).values()))),
        TypeError,
        "params: expected names that are strings, got 0",
    ),
    "a tensordict": (
        lambda: mf.task_gramian(vector, Nested(PARAMS), BATCH),
        TypeError,
        r"params: expected a dict .*Nested; use dict\(params\.flatten_keys\('\.'\)\.items\(\)\)",
    ),
    "shared of another": (
        lambda: mf.Balancer(NET, mf.mgda(), OTHER),
        ValueError,
        "shared: a parameter of this Linear is not in params.*another network's",
    ),
    "shared of another's parameters": (
        lambda: mf.Balancer(NET, mf.mgda(), list(OTHER.parameters())),
        ValueError,
        "shared: a parameter is not in params.*another network's",
    ),
    "axes": (lambda: mf.grid(lambda a: a, [1, 2]), TypeError, "axes, dims: expected dicts by name"),
    "log_dict of several": (
        lambda: vmap(lambda x: mf.log_dict(INFO._replace(losses=x)))(torch.ones(2, 2)),
        RuntimeError,
        r"log_dict: there are no numbers .*log_dict\(torch",
    ),
    "optimizer": (
        lambda: mf.Balancer(nn.Linear(2, 2), mf.mgda(), metric=mf.adam(1e-3)),
        TypeError,
        r"metric: expected the torch\.optim optimizer",
    ),
    "seed": (lambda: mf.random.key(1.5), TypeError, "key: expected an integer seed, got float"),
    "seed tensor": (lambda: mf.random.key(torch.ones(2)), TypeError, "key: .*float32"),
    "seed shape": (lambda: mf.random.key(torch.arange(2)), ValueError, "key: .*vmap"),
    "gramian shape": (
        lambda: mf.weights(mf.mgda(), torch.ones(2, 3)),
        ValueError,
        r"gramian: .*\(2, 3\)",
    ),
    "gramian empty": (
        lambda: mf.weights(mf.mgda(), torch.ones(0, 0)),
        ValueError,
        "gramian: .*T >= 1",
    ),
    "gramian batched": (
        lambda: mf.weights(mf.mgda(), torch.ones(3, 2, 2)),
        ValueError,
        "gramian: .*vmap",
    ),
    "gramian integer": (
        lambda: mf.weights(mf.mgda(), torch.ones(2, 2, dtype=torch.int64)),
        TypeError,
        "gramian: .*int64",
    ),
    "gramian nan": (
        lambda: mf.weights(mf.mgda(), G * float("nan")),
        ValueError,
        r"gramian: NaN or infinite entries in rows \[0, 1\]",
    ),
    "gramian asymmetric": (
        lambda: mf.solvers.min_norm(torch.tensor([[1.0, 0.5], [0.2, 1.0]])),
        ValueError,
        r"gramian: not symmetric: entry \[0, 1\] is 0.5 but \[1, 0\] is 0.2",
    ),
    "losses dtype": (
        lambda: mf.weights(mf.gradnorm(1.0), G, torch.ones(2)),
        ValueError,
        "losses is torch.float32.*gramian is torch.float64",
    ),
    "losses shape": (
        lambda: mf.weights(mf.gradnorm(1.0), G, torch.ones(3, dtype=torch.float64)),
        ValueError,
        r"losses: expected shape \[2\]",
    ),
    "losses nan": (
        lambda: mf.weights(
            mf.gradnorm(1.0), G, torch.tensor([1.0, float("nan")], dtype=torch.float64)
        ),
        ValueError,
        r"losses: NaN .*\[1\]",
    ),
    "jacobian shape": (
        lambda: mf.aggregate(mf.mgda(), torch.ones(3)),
        ValueError,
        r"jacobian: .*\[3\]",
    ),
    "jacobian inf": (
        lambda: mf.aggregate(mf.mgda(), torch.tensor([[1.0], [float("inf")]])),
        ValueError,
        r"jacobian: .*tasks \[1\]",
    ),
    "c negative": (
        lambda: mf.cagrad(-0.1),
        ValueError,
        "c: expected a finite number >= 0, got -0.1",
    ),
    "c nan": (lambda: mf.cagrad(float("nan")), ValueError, "c: .*nan"),
    "c string": (lambda: mf.cagrad("0.4"), TypeError, "c: .*str"),
    "c vector": (lambda: mf.cagrad(torch.ones(2)), ValueError, "c: .*vmap"),
    "c in the problem": (lambda: mf.solvers.cagrad(G, -1.0), ValueError, "c: "),
    "rescale": (
        lambda: mf.cagrad(0.4, rescale="2"),
        ValueError,
        "rescale='2': expected one of 'none', '1\\+c'",
    ),
    "alpha": (lambda: mf.gradnorm(-1.0), ValueError, "alpha: "),
    "gradnorm lr": (lambda: mf.gradnorm(1.0, 0.0), ValueError, "lr: expected a finite number > 0"),
    "floor": (lambda: mf.gradnorm(1.0, floor=0.0), ValueError, "floor: "),
    "initial losses": (
        lambda: mf.weights(mf.gradnorm(1.0), G, torch.tensor([1.0, 0.0], dtype=torch.float64)),
        ValueError,
        "initial losses > 0, got .*reference=",
    ),
    "reference": (
        lambda: mf.weights(
            mf.gradnorm(1.0, reference=torch.ones(3)), G, torch.ones(2, dtype=torch.float64)
        ),
        ValueError,
        "reference: ",
    ),
    "preference negative": (
        lambda: mf.weights(mf.mean(preference=torch.tensor([1.0, -1.0])), G),
        ValueError,
        "preference: expected finite entries >= 0",
    ),
    "preference zero": (
        lambda: mf.weights(mf.mean(preference=torch.zeros(2)), G),
        ValueError,
        "preference: .*positive sum",
    ),
    "preference shape": (
        lambda: mf.weights(mf.mean(preference=torch.ones(3)), G),
        ValueError,
        r"preference: expected shape \[2\]",
    ),
    "preference integer": (
        lambda: mf.weights(mf.mean(preference=torch.ones(2, dtype=torch.int64)), G),
        ValueError,
        "preference is torch.int64",
    ),
    "orders shape": (
        lambda: mf.pcgrad(torch.ones(2, 3, dtype=torch.int64)),
        ValueError,
        "orders: ",
    ),
    "orders rows": (
        lambda: mf.pcgrad(torch.zeros(2, 2, dtype=torch.int64)),
        ValueError,
        "orders: every row must be a permutation",
    ),
    "orders tasks": (
        lambda: mf.weights(mf.pcgrad(torch.arange(3).expand(3, 3)), G),
        ValueError,
        "orders: made for 3 tasks",
    ),
    "lr": (lambda: mf.adam(-1e-3), ValueError, "lr: "),
    "lr zero": (lambda: mf.sgd(0.0), ValueError, "lr: "),
    "momentum": (lambda: mf.sgd(0.1, momentum=-0.5), ValueError, "momentum: "),
    "heads": (
        lambda: mf.jacobian("*", heads="none"),
        ValueError,
        "heads='none': expected one of 'plain', 'own', 'weighted'",
    ),
    "engine": (lambda: mf.jacobian("*", engine="layers"), ValueError, "engine='layers'"),
    "step rule": (
        lambda: mf.solvers.frank_wolfe(10, "exact"),
        ValueError,
        "step='exact': expected one of 'line-search'",
    ),
    "wrong problem": (
        lambda: mf.solvers.frank_wolfe(10)(mf.solvers.dual_cone(G, G[0])),
        TypeError,
        "frank_wolfe takes min_norm and cagrad",
    ),
    "rows of no layer": (lambda: mf.muon.nuclear(G), TypeError, "rows: expected .*dict"),
    "rates of no tensor": (
        lambda: mf.muon.nuclear({"w": torch.ones(2, 3, 4)}, carried=[0.0]),  # pyright: ignore
        TypeError,
        r"carried: expected a floating tensor \[2\], got \[0.0\]",
    ),
    "not a problem": (lambda: mf.solvers.faces()(G), TypeError, "problem: expected min_norm"),
    "too many faces": (
        lambda: mf.solvers.faces()(mf.solvers.min_norm(torch.eye(7))),
        ValueError,
        "faces: 7 tasks",
    ),
    "stateless": (lambda: mf.stateless(lambda: G), TypeError, "stateless: expected f\\(gramian\\)"),
    "weights of another shape": (
        lambda: mf.aggregate(mf.stateless(lambda gramian: gramian), G),
        ValueError,
        r"rule: expected weights of shape \[2\] from update, got \[2, 2\]",
    ),
    "complex weights": (
        lambda: mf.aggregate(mf.stateless(lambda gramian: gramian[0] * 1j), G),
        ValueError,
        "rule: expected real weights from update, got torch.complex",
    ),
    "a rule reads a name that nothing measures": (
        lambda: mf.balance(
            vector, mf.mean()._replace(reads=frozenset({"grammian"})), mf.jacobian()
        ),
        ValueError,
        "a probe of your own that measures 'grammian'",
    ),
    "reduction": (
        lambda: mf.balance(vector, mf.mean(), mf.losses_only(), reduction="none"),
        ValueError,
        "reduction='none'",
    ),
    "params": (
        lambda: mf.task_gradients(vector, torch.nn.Linear(2, 1), BATCH),
        TypeError,
        r"params: .*mtlfunc\.parameters",
    ),
    "params leaf": (
        lambda: mf.task_gradients(vector, {"w": 1.0}, BATCH),
        TypeError,
        r"params\['w'\]: expected a tensor",
    ),
    "has_aux missing": (
        lambda: mf.descend(
            lambda p, b: (vector(p, b), 1), mf.mean(), mf.losses_only(), mf.sgd(0.1)
        ).init(PARAMS, BATCH),
        ValueError,
        "pass has_aux=True",
    ),
    "has_aux wrong": (
        lambda: mf.descend(scalars, mf.mean(), mf.losses_only(), mf.sgd(0.1), has_aux=True).init(
            PARAMS, BATCH
        ),
        ValueError,
        "has_aux=True, but losses_fn did not",
    ),
    "delta_m": (
        lambda: mf.diagnostics.delta_m({"a": 1.0}, {"b": 1.0}, {"a": True}),
        ValueError,
        "same names",
    ),
    "delta_m zero": (
        lambda: mf.diagnostics.delta_m({"a": 1.0}, {"a": 0.0}, {"a": True}),
        ValueError,
        "baselines: a is 0",
    ),
    "not a Gramian": (
        lambda: mf.weights(mf.pcgrad(), G - 3 * G.flip(0)),
        ValueError,
        r"gramian: indefinite: entry \[0, 1\] is -3",
    ),
    "not symmetric": (
        lambda: mf.weights(mf.imtl_g(), G.triu() + torch.ones_like(G).triu()),
        ValueError,
        r"gramian: not symmetric",
    ),
    "sparse Gramian": (
        lambda: mf.weights(mf.mean(), G.to_sparse()),
        TypeError,
        r"gramian: expected a dense tensor",
    ),
    "no tasks": (
        lambda: mf.task_gramian(lambda p, b: [], PARAMS, BATCH),
        ValueError,
        "losses_fn: .*one task at least",
    ),
    "no samples": (
        lambda: mf.sample_gramian(lambda p, b: vector(p, b)[:0], PARAMS, BATCH),
        ValueError,
        r"losses_fn: expected \[sample\] .* none of them 0, got \[0\]",
    ),
    "vmap over no Gramians": (
        lambda: vmap(lambda x: mf.weights(mf.mgda(), x))(G.expand(0, 2, 2)),
        ValueError,
        "gramian: torch.func.vmap runs over an axis of length 0",
    ),
    "vmap over no networks": (
        lambda: vmap(lambda w: mf.task_gramian(lambda p, b: p["w"] ** 2, {"w": w}, ()))(G[:0]),
        ValueError,
        "losses_fn: torch.func.vmap runs over an axis of length 0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_error_names_the_argument(case):
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        call()


def adds(state):
    state["n"].add_(1)
    return state


def replaces(state):
    state["n"] = state["n"] + 1
    return state


def leaves_alone(state):
    return {"n": state["n"] + 1}


@pytest.mark.parametrize(
    ("edit", "following", "where"),
    [
        (lambda geometry: None, adds, r"state\['n'\]"),
        (lambda geometry: None, replaces, r"state\['n'\]"),
        (lambda geometry: geometry.gramian.diagonal().mul_(2), leaves_alone, r"geometry\.gramian"),
        (lambda geometry: geometry.losses.detach().add_(1), leaves_alone, r"geometry\.losses"),
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
        made(lambda out: list(out.square()), rule=rule)


def test_a_state_may_change_the_order_of_its_keys_and_its_dtype():
    one_step(remembering({"x": G, "y": G[0]}, {"y": G[0].float(), "x": G}))


def test_every_rule_with_a_solver_is_in_the_table():
    rules = {name: inspect.signature(getattr(mf, name)).parameters for name in mf.rules.__all__}
    assert {name for name, given in rules.items() if "solver" in given} == SOLVED.keys() - {
        "stationarity"
    }


def test_counts_may_be_of_other_libraries():
    problem = mf.solvers.min_norm(torch.diag(torch.tensor([1.0, 4.0])))
    for count in (np.int64(5), torch.tensor(5)):
        found = mf.solvers.frank_wolfe(count)(problem)
        torch.testing.assert_close(found.weights, mf.solvers.frank_wolfe(5)(problem).weights)


def test_physics_arguments_of_another_type():
    params, x = {"a": torch.ones(1)}, torch.rand(3, 2)
    for points in (x[0], x.long(), [[1.0]]):
        with pytest.raises(ValueError, match="x: expected floating points"):
            mf.physics.laplacian(lambda p, x: x, params, points)  # pyright: ignore
    with pytest.raises(ValueError, match=r"x: .*Jet"):  # no jets of jets
        mf.physics.laplacian(lambda p, x: mf.physics.laplacian(lambda p, x: x, p, x)[0], params, x)
    with pytest.raises(ValueError, match=r"order: expected 1, 2 or 3, got 1\.5"):
        mf.physics.directional(lambda p, x: x, params, x, x[0], 1.5)  # pyright: ignore
    with pytest.raises(ValueError, match=r"direction: .* \[2\] or \[3, 2\]"):
        mf.physics.directional(lambda p, x: x, params, x, torch.ones(3), 1)
    with pytest.raises(ValueError, match=r"factors: expected a tensor \[factor\]"):
        mf.physics.line_search(lambda p, b: p["a"].sum(), params, params, (), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"expected a list of functions .* got function"):
        mf.physics.kernel_traces(lambda p, b: b, mf.losses_only())  # pyright: ignore
    with pytest.raises(ValueError, match=r"trace='max': expected one of 'sum', 'mean'"):
        mf.physics.kernel_traces([lambda p, b: b], mf.losses_only(), trace="max")  # pyright: ignore


def test_gaps_of_one_solver_without_a_name():
    with pytest.raises(ValueError, match=r"curves: expected a dict.* got list"):
        mf.plot.gap([1.0])  # pyright: ignore[reportArgumentType]


def test_weightings_in_a_list():
    with pytest.raises(TypeError, match=r"weightings: expected a floating tensor .* got list"):
        mf.task_gramian(vector, PARAMS, BATCH, weightings=[[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("reads", ["gramian", ["gramian"]])
def test_what_a_rule_reads_is_a_frozenset(reads):
    with pytest.raises(TypeError, match=r"rule: reads is .*give a frozenset"):
        reads_of(mf.mgda()._replace(reads=reads))


def test_a_state_of_another_dtype_is_told():
    optimizer = mf.adam(0.1)
    old = {"a": torch.ones(2)}
    new = {"a": torch.ones(2, dtype=torch.float64)}
    with pytest.raises(TypeError, match=r"state: torch\.float32 meets torch\.float64"):
        optimizer.update(new, optimizer.init(old), new)


def test_gramians_of_whole_numbers_are_refused():
    x, params = torch.ones(2, 2), {"w": torch.ones(2)}
    for call in (mf.task_gramian, mf.sample_gramian, mf.sample_norms):
        for engine in ("layerwise", "rows"):
            with pytest.raises(TypeError, match=r"gramian_dtype: expected .* got torch.int64"):
                call(lambda p, x: x @ p["w"], params, x, engine=engine, gramian_dtype=torch.int64)


def test_arenas_of_nothing_are_refused():
    for wrong in ({"tuning": 0}, {"seeds": 0}, {"budget": -1.0}, {"budget": float("nan")}):
        settings = SHORT._replace(**wrong)
        with pytest.raises(ValueError, match="settings: expected seeds and tuning >= 1"):
            mf.arena(mf.mgda(), problems="vlmop2", settings=settings)
    with pytest.raises(TypeError, match=r"^settings: expected Settings.* got int"):
        mf.arena(mf.mgda(), problems="vlmop2", settings=3)  # pyright: ignore
