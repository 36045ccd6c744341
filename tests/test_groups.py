"""Groups of shared parameters: the rule on each one's Gramian, against a loop over the groups."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils._pytree import tree_leaves

import mtlfunc as mf
from tests.support.problems import (
    BATCH,
    HEADS,
    PARAMS,
    TASKS,
    TRUNK,
    flatten,
    literal_rows,
    nets,
    opaque,
    scalars,
    vector,
)
from tests.support.registry import on_gramian

F64 = torch.float64
SHARED = "trunk.*"
BLOCKS = {
    "trunk.0": ("trunk.0.weight", "trunk.0.bias"),
    "trunk.2": ("trunk.2.weight", "trunk.2.bias"),
}
GROUPS = {
    "layer": ("layer", BLOCKS),
    "function": (
        lambda name: name.rpartition(".")[2],
        {kind: (f"trunk.0.{kind}", f"trunk.2.{kind}") for kind in ("weight", "bias")},
    ),
    "dict": (
        {"late": "trunk.2.*", "early": "trunk.0.*"},
        {"late": BLOCKS["trunk.2"], "early": BLOCKS["trunk.0"]},
    ),
    "dict of predicates": ({"all": lambda name: True}, {"all": TRUNK}),
}
RULES = {
    "mean": mf.mean,
    "mgda": mf.mgda,
    "cagrad": lambda: mf.cagrad(0.4),
    "pcgrad": mf.pcgrad,
    "gradnorm": lambda: mf.gradnorm(0.5),
    "modo": lambda: on_gramian(mf.modo()),
    "stateless": lambda: mf.stateless(
        lambda gramian: gramian.diagonal() / gramian.diagonal().sum()
    ),
}


CASES = [(rule, kind, "auto") for rule in RULES for kind in GROUPS]
CASES += [
    (rule, kind, engine)
    for rule in ("mgda", "pcgrad")
    for kind in GROUPS
    for engine in ("rows", "layerwise")
]


@pytest.mark.parametrize(("rule", "kind", "engine"), CASES)
def test_step_equals_a_loop_over_the_groups(rule, kind, engine):
    """Rows by torch.autograd.grad; each group has its own rule, state and key."""
    groups, blocks = GROUPS[kind]
    step = mf.descend(
        opaque, RULES[rule](), mf.jacobian(SHARED, param_groups=groups, engine=engine), mf.sgd(0.1)
    )
    state = step.init(PARAMS, BATCH, key=7)
    params = {name: leaf.clone() for name, leaf in PARAMS.items()}
    key = mf.random.fold_in(mf.random.key(7), 1)
    made = [RULES[rule]() for _ in blocks]
    first = literal_rows(params, BATCH, TRUNK)[0]
    states = [one.init(first, mf.random.fold_in(key, g)) for g, one in enumerate(made)]
    for _ in range(3):
        losses, on_heads = literal_rows(params, BATCH, HEADS)
        moved, weights, gramians = {}, [], []
        for g, names in enumerate(blocks.values()):
            rows = literal_rows(params, BATCH, names)[1]
            gramians.append(rows @ rows.T)
            own, states[g] = made[g].update(
                mf.Geometry(
                    losses,
                    gramians[-1],
                    torch.full_like(losses, 1 / TASKS),
                    torch.ones(TASKS) > 0,
                    {},
                ),
                states[g],
            )
            weights.append(own)
            moved |= dict(
                zip(
                    names, (own @ rows).split([params[name].numel() for name in names]), strict=True
                )
            )
        moved |= dict(
            zip(
                HEADS, on_heads.mean(0).split([params[name].numel() for name in HEADS]), strict=True
            )
        )
        params = {
            name: leaf - 0.1 * moved[name].reshape(leaf.shape) for name, leaf in params.items()
        }
        state, info = step.update(state, BATCH)
        torch.testing.assert_close(info.gramian, torch.stack(gramians), rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(info.weights, torch.stack(weights), rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(
            info.rates,
            torch.stack([G @ w for G, w in zip(gramians, weights, strict=True)]),
            rtol=1e-8,
            atol=1e-11,
        )
        torch.testing.assert_close(flatten(state.params), flatten(params), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("heads", ["plain", "own"])
def test_mean_of_groups_is_the_mean(heads):
    grads, expected = (
        balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH))[0]
        for balance in (
            mf.balance(vector, mf.mean(), mf.jacobian(SHARED, param_groups=groups, heads=heads))
            for groups in ("layer", None)
        )
    )
    torch.testing.assert_close(flatten(grads), flatten(expected), rtol=1e-12, atol=1e-15)


def test_measure_mix_mask_and_dtype_within_groups():
    """Each Gramian sums over its group's measured leaves; mixed and edited rows group alike."""
    _, rows = mf.task_gradients(opaque, PARAMS, BATCH)
    matrix, preference = mf.subset(2)(mf.random.key(3), TASKS)
    edited = {name: torch.tensordot(matrix, row, 1).clamp_min(0) for name, row in rows.items()}
    probe = mf.jacobian(
        SHARED,
        param_groups="layer",
        measure="*.weight",
        mix=lambda key, count: (matrix, preference),
        mask=lambda key, rows: {name: row.clamp_min(0) for name, row in rows.items()},
        gramian_dtype=F64,
    )
    balance = mf.balance(opaque, mf.mgda(), probe)
    grads, _, info = balance.update(PARAMS, BATCH, balance.init(PARAMS, BATCH))
    for g, layer in enumerate(BLOCKS):
        flat = edited[f"{layer}.weight"].flatten(1)
        torch.testing.assert_close(info.gramian[g], flat @ flat.T, rtol=1e-12, atol=1e-15)
        for name in BLOCKS[layer]:
            torch.testing.assert_close(
                grads[name],
                torch.tensordot(info.weights[g], edited[name], 1),
                rtol=1e-12,
                atol=1e-15,
            )


@pytest.mark.parametrize("rule", ["mgda", "pcgrad", "gradnorm"])
def test_vmapped_nested_equals_loop(rule):
    def run(params, seed, lr):
        step = mf.descend(
            opaque, RULES[rule](), mf.jacobian(SHARED, param_groups="layer"), mf.adam(lr)
        )
        state, _ = step.update(step.init(params, BATCH, key=seed), BATCH)
        return step.update(state, BATCH)

    lrs = torch.tensor([0.01, 0.05], dtype=F64)
    whole = vmap(vmap(run, (None, None, 0)), (0, 0, None))(
        mf.stack(nets), torch.arange(len(nets)), lrs
    )
    for i, module in enumerate(nets):
        for j, lr in enumerate(lrs):
            for got, expected in zip(
                tree_leaves(whole), tree_leaves(run(mf.parameters(module), i, lr)), strict=True
            ):
                torch.testing.assert_close(got[i, j], expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("separate", [False, True])
def test_gradient_of_a_run_with_respect_to_c_and_through_the_losses(separate):
    def end(both):
        def losses(params, batch):
            out = scalars(params, batch)
            scaled = (out[0], both[1] * out[1], out[2])
            return scaled if separate else torch.stack(scaled)

        step = mf.descend(
            losses, mf.cagrad(both[0]), mf.jacobian(SHARED, param_groups="layer"), mf.sgd(0.05)
        )
        state = step.init(PARAMS, BATCH)
        for _ in range(3):
            state, _ = step.update(state, BATCH)
        return vector(state.params, BATCH).sum()

    at, h = torch.tensor([0.4, 1.2], dtype=F64), 1e-5
    gradient = grad(end)(at)
    for i, unit in enumerate(torch.eye(2, dtype=F64)):
        difference = (end(at + h * unit) - end(at - h * unit)) / (2 * h)
        assert abs(difference) > 1e-6
        torch.testing.assert_close(gradient[i], difference, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(jvp(end, (at,), (unit,))[1], difference, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("rule", ["pcgrad", "gradnorm", "modo"])
def test_state_resumes_and_is_contiguous(rule, tmp_path):
    step = mf.descend(opaque, RULES[rule](), mf.jacobian(SHARED, param_groups="layer"), mf.sgd(0.1))
    state = step.init(PARAMS, BATCH, key=5)
    assert all(leaf.is_contiguous() for leaf in tree_leaves(state))
    state, _ = step.update(state, BATCH)
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt")
    for a, b in zip(
        tree_leaves(step.update(state, BATCH)), tree_leaves(step.update(loaded, BATCH)), strict=True
    ):
        assert torch.equal(a, b)


def test_groups_draw_orders_of_their_own():
    """One key a group: PCGrad's orders are not the same in all of them."""
    step = mf.balance(vector, mf.pcgrad(), mf.jacobian(SHARED, param_groups="layer"))
    keys = step.init(PARAMS, BATCH, key=1).rule.key
    assert keys.shape == (2,)
    assert keys[0] != keys[1]


def test_layers_of_a_deeper_module_and_leaves_without_one():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.block = nn.ModuleDict(
                {"attention": nn.MultiheadAttention(4, 2, batch_first=True), "out": nn.Linear(4, 2)}
            )

        def forward(self, x):
            x = x * self.scale
            return self.block["out"](self.block["attention"](x, x, x, need_weights=False)[0])

    net = Net().double()
    params, x = mf.parameters(net), torch.linspace(-1, 1, 24, dtype=F64).reshape(2, 3, 4)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        step = mf.balance(
            lambda p, b: functional_call(net, p, (b,)).square().mean((0, 1)),
            mf.mgda(),
            mf.jacobian("*[!2]*", param_groups="layer"),
        )
        _, _, info = step.update(params, x, step.init(params, x))
    assert info.gramian.shape == (4, 2, 2)  # scale, attention, its projection, the last layer


def test_extra_of_a_probe_is_common_to_the_groups_if_it_has_one_axis():
    """FAMO, with as many groups as tasks: a mistaken axis would not show in the shapes."""
    groups = lambda name: "abc"[min(TRUNK.index(name), 2)]  # noqa: E731
    probe = mf.second_evaluation(mf.jacobian(SHARED, param_groups=groups))
    step = mf.balance(vector, mf.famo(), probe)
    _, state, _ = step.update(PARAMS, BATCH, step.init(PARAMS, BATCH))
    _, _, info = step.update(PARAMS, BATCH, state)
    assert info.weights.shape == (3, TASKS)
    torch.testing.assert_close(info.weights[0], info.weights[2], rtol=1e-12, atol=0)
    alone = mf.balance(vector, mf.famo(), mf.second_evaluation(mf.jacobian(SHARED)))
    _, state, _ = alone.update(PARAMS, BATCH, alone.init(PARAMS, BATCH))
    _, _, expected = alone.update(PARAMS, BATCH, state)
    torch.testing.assert_close(info.weights[1], expected.weights, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"a": "trunk.0.*", "b": "trunk.9.*"},
            r"param_groups\['b'\]='trunk\.9\.\*' matches no parameter; there are: trunk\.0\.weight",
        ),
        ({"a": "trunk.*", "b": "heads.*"}, r"param_groups\['b'\]='heads\.\*' matches no parameter"),
        (
            {"a": "trunk.*", "b": "trunk.2.*"},
            r"param_groups: 'trunk\.2\.weight' is in 'a' and 'b'; every shared parameter belongs "
            r"to one group",
        ),
        ({"a": "trunk.0.*"}, r"param_groups: 'trunk\.2\.weight' is shared but in no group"),
        (
            lambda name: None if name == "trunk.0.bias" else 1,
            r"param_groups: 'trunk\.0\.bias' is shared but in no group",
        ),
        ("layers", r"param_groups='layers': expected \"layer\""),
    ],
    ids=["nothing", "not shared", "overlap", "left out", "no label", "word"],
)
def test_groups_that_are_no_partition_are_errors_at_init(groups, message):
    with pytest.raises(ValueError, match=message):
        mf.balance(vector, mf.mgda(), mf.jacobian(SHARED, param_groups=groups)).init(PARAMS, BATCH)


def test_what_groups_cannot_be_combined_with():
    with pytest.raises(
        ValueError, match=r'heads="weighted": with groups there is one weight a group and task'
    ):
        mf.jacobian(SHARED, param_groups="layer", heads="weighted")
    with pytest.raises(
        ValueError, match=r"measure='trunk\.2\.\*': group 'trunk\.0' has none of these parameters"
    ):
        mf.balance(
            vector, mf.mgda(), mf.jacobian(SHARED, param_groups="layer", measure="trunk.2.*")
        ).init(PARAMS, BATCH)


def test_errors_of_the_rule_at_init_are_seen_through_the_groups():
    with pytest.raises(ValueError, match="need initial losses > 0"):
        mf.balance(
            lambda p, b: vector(p, b) - 100,
            mf.gradnorm(0.5),
            mf.jacobian(SHARED, param_groups="layer"),
        ).init(PARAMS, BATCH)
