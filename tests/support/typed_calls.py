"""Calls for pyright alone: a wrong one carries its error's name, which is an error if unneeded."""
# pyright: reportUnnecessaryTypeIgnoreComment=error

from typing import assert_type

import torch
from torch import Tensor

import mtlfunc as mf
from mtlfunc.types import BalanceState, Batch, LossesFn, Params, Solver, State


def losses(params: Params, batch: Batch) -> Tensor:
    return params["x"] - batch


def one_argument(params: Params) -> Tensor:
    return params["x"]


def parts(params: Params, batch: Batch, gramian: Tensor) -> None:
    rule, probe, optimizer = mf.mgda(), mf.jacobian(), mf.adam(1e-3)
    step = mf.descend(losses, rule, probe, optimizer)
    state = step.init(params, batch, key=3)
    assert_type(state, mf.TrainState)
    state, info = step.update(state, batch)
    assert_type(info, mf.Info)
    assert_type(info.tasks, dict[str, Tensor])
    balanced = mf.balance(losses, rule, probe)
    assert_type(balanced.init(params, batch), BalanceState)
    grads, _, _ = balanced.update(params, batch, state.balance)
    assert_type(grads, Params)
    assert_type(mf.solvers.active_set()(mf.solvers.min_norm(gramian)), mf.types.Solution)

    mf.balance(losses, mf.mgda, probe)  # pyright: ignore[reportArgumentType]
    mf.balance(losses, "mgda", probe)  # pyright: ignore[reportArgumentType]
    mf.balance(losses, probe, rule)  # pyright: ignore[reportArgumentType]
    mf.balance(one_argument, rule, probe)  # pyright: ignore[reportArgumentType]
    mf.descend(losses, rule, optimizer, probe)  # pyright: ignore[reportArgumentType]
    sgd = torch.optim.SGD([gramian])
    mf.descend(losses, rule, probe, sgd)  # pyright: ignore[reportArgumentType]
    balanced.init(params)  # pyright: ignore[reportCallIssue]
    balanced.init(params, batch, seed=3)  # pyright: ignore[reportCallIssue]
    balanced.init(params, batch, key="3")  # pyright: ignore[reportArgumentType]
    balanced.update(params, state.balance, batch, 3)  # pyright: ignore[reportCallIssue]
    balanced.update(params, batch, state)  # pyright: ignore[reportArgumentType]
    balanced.update(params, batch, params)  # pyright: ignore[reportArgumentType]
    step.update(state)  # pyright: ignore[reportCallIssue]
    step.update(params, batch)  # pyright: ignore[reportArgumentType]
    step.update(batch=batch, params=params)  # pyright: ignore[reportCallIssue]
    rule.init(info.losses)  # pyright: ignore[reportCallIssue]
    rule.update(info.gramian, ())  # pyright: ignore[reportArgumentType]
    probe.init(mf.Run.of(losses, params), batch)  # pyright: ignore[reportCallIssue]
    probe.update(mf.Run.of(losses, params), batch)  # pyright: ignore[reportCallIssue]
    optimizer.update(grads, params)  # pyright: ignore[reportCallIssue]
    mf.mgda("faces")  # pyright: ignore[reportArgumentType]
    mf.mgda(mf.solvers.faces)  # pyright: ignore[reportArgumentType]


def updates_without_state(geometry: mf.Geometry) -> Tensor:
    return geometry.losses


def gives_weights_alone(geometry: mf.Geometry, state: State) -> Tensor:
    return geometry.losses


def own(losses: Tensor, key: Tensor) -> State:
    return ()


mf.Rule(own, updates_without_state)  # pyright: ignore[reportArgumentType]
mf.Rule(own, gives_weights_alone)  # pyright: ignore[reportArgumentType]
mf.Rule(own, own)  # pyright: ignore[reportArgumentType]
wrong_solver: Solver = own  # pyright: ignore[reportAssignmentType]
wrong_losses: LossesFn = one_argument  # pyright: ignore[reportAssignmentType]
