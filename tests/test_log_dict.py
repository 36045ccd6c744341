"""What a step logs: against literal sums over gradients, on every form of `Info`."""

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import mtlfunc as mf
from mtlfunc.types import Info
from tests.support.problems import BATCH, F64, FORMS, PARAMS, TASKS


def info_of(rows: Tensor, weights: Tensor, tasks: dict[str, Tensor] | None = None) -> Info:
    gramian = rows @ rows.mT
    losses = torch.arange(1, len(rows) + 1, dtype=rows.dtype)
    return Info(losses, gramian, weights, gramian @ weights, (), tasks or {})


def expected(rows: Tensor, weights: Tensor, names: list[str]) -> dict[str, float]:
    """By loops over vectors."""
    found = {f"loss/{name}": i + 1.0 for i, name in enumerate(names)}
    found |= {f"weight/{name}": float(w) for name, w in zip(names, weights, strict=True)}
    direction = sum(w * row for w, row in zip(weights, rows, strict=True))
    assert isinstance(direction, Tensor)
    found |= {f"rate/{name}": float(row @ direction) for name, row in zip(names, rows, strict=True)}
    some = [i for i, row in enumerate(rows) if bool(row.any())]
    signs = []
    for i, j in combinations(some, 2):
        cosine = float(rows[i] @ rows[j] / rows[i].norm() / rows[j].norm())
        found[f"cosine/{names[i]}-{names[j]}"] = cosine
        signs.append(float(rows[i] @ rows[j]) < 0)
    if signs:
        found["conflict"] = sum(signs) / len(signs)
    if float(weights.sum()) > 0:
        direction = direction / weights.sum()
    found["length"] = float(direction.norm())
    rates = [float(rows[i] @ direction) for i in some]
    found["shortfall"] = found["length"] ** 2 - min(rates, default=found["length"] ** 2)
    return found


@given(st.integers(1, 6), st.integers(0, 10**6), st.sampled_from(["simplex", "any", "zero"]))
def test_scalars_are_those_of_loops_over_gradients(count, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-3, 4, (count, 3), generator=generator).double()  # some are zero
    weights = torch.randn(count, generator=generator, dtype=F64)
    weights = {"simplex": weights.softmax(0), "any": weights, "zero": 0 * weights}[kind]
    names = [f"t{i}" for i in range(count)]
    found, known = mf.log_dict(info_of(rows, weights), names=names), expected(rows, weights, names)
    assert list(found) == list(known)
    # products of integers below 50, divided at worst by a sum of weights near 0
    slack = 1e-13 / min(1.0, abs(float(weights.sum())) ** 2 or 1.0)
    for name, number in known.items():
        assert type(found[name]) is float
        # where rates cancel, the length is the root of their rounding
        rounding = slack**0.5 if name == "length" else slack
        assert found[name] == pytest.approx(number, rel=1e-11, abs=1e3 * rounding), name


def step_info(form: str, rule: mf.Rule, probe: mf.Probe, batch: Any = BATCH) -> Info:
    step = mf.balance(FORMS[form], rule, probe)
    return step.update(PARAMS, batch, step.init(PARAMS, batch))[2]


def test_names_are_those_of_the_losses():
    info = step_info("dict", mf.mean(), mf.jacobian("trunk.*"))
    names = list(info.tasks)
    losses = {key: x for key, x in mf.log_dict(info).items() if key.startswith("loss/")}
    assert losses == {f"loss/{name}": info.tasks[name].item() for name in names}
    numbered = {f"{kind}/{task}" for kind in ("loss", "weight") for task in range(TASKS)}
    for form in ("vector", "tuple"):  # without names
        assert set(mf.log_dict(step_info(form, mf.mean(), mf.losses_only()))) == numbered
    assert "cosine/a-c" in mf.log_dict(info, names=["a", "b", "c"])


def test_absent_tasks_count_in_no_pair():
    present = torch.tensor([True, False, True])
    probe = mf.jacobian("trunk.*", present=lambda batch: present)
    found = mf.log_dict(step_info("vector", mf.mgda(), probe))
    assert [key for key in found if key.startswith("cosine/")] == ["cosine/0-2"]
    assert found["conflict"] in (0.0, 1.0)
    assert found["weight/1"] == 0
    assert found["shortfall"] == pytest.approx(0, abs=1e-5)  # mgda on the two that are present
    alone = info_of(torch.zeros(2, 3), torch.tensor([0.5, 0.5]))
    assert {"length": 0.0, "shortfall": 0.0}.items() <= mf.log_dict(alone).items()
    assert "conflict" not in mf.log_dict(alone)
    moved = info_of(torch.eye(2), torch.tensor([0.5, 0.5]))._replace(rates=torch.zeros(2))
    assert mf.log_dict(moved)["length"] == pytest.approx(0.5**0.5)  # whatever momentum adds


def test_mixtures_of_tasks_are_numbered():
    info = step_info("dict", mf.mean(), mf.jacobian("trunk.*", mix=mf.subset(2)))
    found = {key for key in mf.log_dict(info) if key.startswith("weight/")}
    assert found == {f"weight/{row}" for row in range(info.weights.shape[-1])}


def test_nan_is_nan():
    info = info_of(torch.tensor([[1.0, 0.0], [float("nan"), 1.0]]), torch.tensor([0.5, 0.5]))
    found = mf.log_dict(info)
    for key in ("cosine/0-1", "conflict", "length", "shortfall", "rate/1"):
        assert math.isnan(found[key]), key


def test_extreme_scales_keep_cosines():
    rows = torch.tensor([[1e-18, 0.0], [-1e-18, 1e-18]])  # float32, squares near its smallest
    found = mf.log_dict(info_of(rows, torch.tensor([0.5, 0.5])))
    assert found["cosine/0-1"] == pytest.approx(-math.sqrt(0.5), rel=1e-5)
    assert found["conflict"] == 1


class Synchronisations(TorchFunctionMode):
    """Counts calls that wait for a device."""

    NAMES = ("tolist", "item", "cpu", "numpy", "to", "__bool__", "__float__", "__int__", "nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in self.NAMES or func.__name__ == "__getitem__":
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_one_synchronisation():
    info = step_info("dict", mf.mgda(), mf.jacobian("trunk.*"))
    with Synchronisations() as counted:
        mf.log_dict(info)
    assert counted.seen == ["tolist"]


def test_several_dtypes_and_a_graph():
    info = info_of(torch.eye(2), torch.tensor([0.5, 0.5]))
    half = info.losses.bfloat16().requires_grad_()
    info = info._replace(losses=half, gramian=info.gramian.double())
    assert mf.log_dict(info)["loss/1"] == 2


def test_what_it_refuses():
    info = info_of(torch.eye(2), torch.tensor([0.5, 0.5]))
    several = tree_map(lambda x: torch.stack([x, x]), info)
    with pytest.raises(ValueError, match=r"several steps or runs; take one"):
        mf.log_dict(several)
    one = tree_map(lambda x: x[1], several)  # as the error says
    assert mf.log_dict(one) == mf.log_dict(info)
    with pytest.raises(RuntimeError, match="outside take one"):
        vmap(lambda info: mf.log_dict(info)["shortfall"])(several)
    for names in ([], ["a"], ["a", "b", "c"], "ab"):
        with pytest.raises(ValueError, match="expected 2 strings"):
            mf.log_dict(info, names=names)
    with pytest.raises(ValueError, match="one key to two numbers"):
        mf.log_dict(info, names=["a", "a"])
    clash = info_of(torch.eye(4), torch.full((4,), 0.25))
    with pytest.raises(ValueError, match="one key to two numbers"):
        mf.log_dict(clash, names=["a", "b-c", "a-b", "c"])
