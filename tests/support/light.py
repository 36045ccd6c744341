"""The core with torch, numpy and jaxtyping alone: a loop, every rule that needs nothing but losses
and a Gramian, every solver, `check_solver`'s families, an audit. `python tests/support/light.py`
where nothing else is installed; with `--hide` the rest is not found.
"""

import importlib.machinery
import sys

ABSENT = (
    *("clarabel", "cvxpy", "filelock", "hypothesis", "matplotlib", "moocore", "numba"),
    *("llvmlite", "pandas", "scipy", "tqdm", "xarray"),
)
BY_TORCH = {"filelock"}  # which torch itself needs, so that it is there


class Hidden(importlib.machinery.PathFinder):
    """Finds nothing of what is to be absent."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        hidden = fullname.partition(".")[0] in ABSENT
        return None if hidden else super().find_spec(fullname, path, target)


def hide() -> None:
    places = [type(x) is type and x is importlib.machinery.PathFinder for x in sys.meta_path]
    sys.meta_path[places.index(True)] = Hidden
    for name in [name for name in sys.modules if name.partition(".")[0] in ABSENT]:
        del sys.modules[name]


def main() -> None:
    if "--hide" in sys.argv:
        import torch  # with what it imports of these itself

        hide()
    import torch
    from torch import nn
    from torch.func import vmap

    import mtlfunc as mf

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(32, 8), torch.randn(32, 3)
    rules = {"mgda": mf.mgda(), "cagrad": mf.cagrad(0.4), "pcgrad": mf.pcgrad(), "uw": mf.uw(0.1)}
    for rule in rules.values():
        balancer = mf.Balancer(net, rule, shared="0.*")
        for _ in range(2):
            net.zero_grad()
            balancer.backward((net(x) - y).square().mean(0))
    rows = torch.randn(5, 7, dtype=torch.float64)
    gramian = rows @ rows.T
    many = vmap(lambda g: mf.solvers.auto()(mf.solvers.min_norm(g)).weights)(gramian[None])
    for make in (mf.solvers.faces, mf.solvers.active_set, mf.solvers.frank_wolfe):
        found = make()(mf.solvers.min_norm(gramian)).weights
        torch.testing.assert_close(found, many[0], atol=1e-2, rtol=0)
    for rule in (mf.upgrad(), mf.nash_mtl(), mf.aligned_mtl(), mf.imtl_g(), mf.fairgrad(1.0)):
        assert mf.weights(rule, gramian).isfinite().all()
    report = mf.testing.check_solver(mf.solvers.active_set(), ("min_norm",), tasks=(2, 2))
    assert report.sound, report
    assert mf.audit(mf.mgda(), only=("valid weights",), instances=5).sound
    step = mf.descend(
        lambda p, b: (torch.func.functional_call(net, p, (b[0],)) - b[1]).square().mean(0),
        mf.mgda(), mf.jacobian("0.*"), mf.adam(1e-3),
    )  # fmt: skip
    step.update(step.init(mf.parameters(net), (x, y)), (x, y))
    for ask, cure in {
        lambda: mf.grid: "mtlfunc[lab]",
        lambda: mf.arena: "mtlfunc[lab]",
        lambda: mf.plot: "mtlfunc[plot]",
        lambda: mf.solvers.cvx(): "pip install cvxpy",
        lambda: mf.testing.jacobians(): "pip install hypothesis",
    }.items():
        try:
            ask()
        except ModuleNotFoundError as error:
            print(error)
            if cure in str(error):
                continue
        raise AssertionError(f"not said: {cure}")
    loaded = [name for name in ABSENT if name in sys.modules and name not in BY_TORCH]
    assert not loaded, loaded


if __name__ == "__main__":
    main()
