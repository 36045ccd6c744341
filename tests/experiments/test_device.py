"""`--device`: studies make their tensors on it, and give on a CPU what they gave."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from common.device import on, replayed
from common.problems import cagrad_toy
from experiments.arena.cells import problem_of
from experiments.arena.contestants import CONTESTANTS
from experiments.grouping import __main__ as grouping_command
from mtlfunc.core import checks
from mtlfunc.gradients import losses
from mtlfunc.studies.arena import Settings as Few
from mtlfunc.studies.arena import compete
from mtlfunc.training import _recorder
from paper_repro.cagrad import convergence, toy_runs
from paper_repro.cagrad.common import quadratics
from paper_repro.gradnorm import common, lanes, train_lanes
from paper_repro.mgda import encoders
from paper_repro.report.findings import Settings
from paper_repro.since import physics, samples, scalarization
from tests.support.recorders import Watched

META = torch.device("meta")  # as another device, but that nothing can be read
SMALL = common.Problem(lanes.TWO, 5, 3, 4, rates=(1e-3, 1e-2), steps=8, batch=4)


def settings(on: torch.device) -> Settings:
    return Settings(seeds=2, shrink=0.01, device=on)


@pytest.fixture
def meta(monkeypatch):
    """torch asks no autocast of this device."""
    asked = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *a: a[:1] != ("meta",) and asked(*a))
    for module in (checks, losses):  # which says that it holds no values
        monkeypatch.setattr(module, "refuse_meta", lambda *a: None)
    with on(META):
        yield


def gradnorm_lanes(on: torch.device) -> object:
    variants = common.variants_of(SMALL, 2, settings(on))
    return common.train.function("gradnorm", SMALL, variants, settings(on), "", 2)


def rivals_lanes(on: torch.device) -> object:
    size = lanes.Size(4, 4, 16, 2, (1e-3,), (1e-3,), (1e-3,), 3, 2)
    some = [lanes.Lane("a", 1e-3), lanes.Lane("b", 1e-2, noise=(0.0, 1.0))]
    return train_lanes.train_block.function("gradnorm", some, size, (0, 2), settings(on), "")


def toy_lanes(on: torch.device) -> Tensor:
    start = torch.tensor(((-8.5, 7.5), (9.0, 9.0)), dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    each = cagrad_toy.Lanes(start, ones, ones / 2, torch.arange(2))
    return toy_runs.stepped.function(("CAGrad", "MGDA"), each, 6, 1e-3, compiled=False)[1]


def convergence_lanes(on: torch.device) -> Tensor:
    return convergence.descend(quadratics(3, 3, 5, 1), (0.2, 0.5), 4)[0][1]


def encoder_lanes(on: torch.device) -> Tensor:
    params, batch = encoders.drawn(encoders.Study(2, 3), 3, settings(on))
    step = encoders.steps_of(encoders.mf.adam(1e-2))["MGDA"]
    return encoders.trained(step, params, batch, 3, "")["trunk.0.weight"]


def sample_lanes(on: torch.device) -> Tensor:
    data, _ = samples.images(2)
    return samples.train(samples.RULES["SGD on the mean"], data, 10)[0]


def scalarization_lanes(on: torch.device) -> Tensor:
    return scalarization.ended(lambda share: scalarization.mf.mgda(), 2, 4)


def equation_lanes(on: torch.device) -> Tensor:
    return physics.trained(physics.PROBLEMS["cubic"], 2, 4)["in"]


def arena_lanes(on: torch.device) -> Tensor:
    few = Few(seeds=1, tuning=1, budget=0.02)
    cell = compete(problem_of("digits", afresh=True), CONTESTANTS["cagrad"], few)
    assert not cell.error
    return cell.losses


def grouping_lanes(on: torch.device) -> Tensor:
    program = grouping_command.Program("digits", 0, first=0, last=1, steps=2)
    return torch.stack(list(grouping_command.drawn(program, (0, 1)).values()))


LANES = (
    toy_lanes, convergence_lanes, encoder_lanes, sample_lanes, scalarization_lanes,
    equation_lanes, arena_lanes, grouping_lanes,
)  # fmt: skip


@pytest.mark.parametrize("train", LANES)
def test_lanes_are_on_the_device_from_start_to_end(train, meta):
    assert train(META).device == META


@pytest.mark.parametrize("train", [gradnorm_lanes, rivals_lanes])
def test_lanes_with_results_on_the_host_fail_at_these_alone(train, meta):
    with pytest.raises(NotImplementedError) as stopped:  # nothing can be read there
        train(META)
    frames = [x for x in stopped.traceback if "paper_repro/gradnorm" in str(x.path)]
    assert any(word in str(frames[-1].statement) for word in ("tolist()", "nonzero()"))


@pytest.mark.parametrize("train", [gradnorm_lanes, rivals_lanes, *LANES[1:6]])
def test_captured_lanes_are_the_same(train, monkeypatch):
    cpu = torch.device("cpu")
    wanted = train(cpu)
    monkeypatch.setitem(_recorder.RECORDERS, "cpu", Watched)
    Watched.made.clear()
    found = train(cpu)
    assert any("replay" in recorder.calls for recorder in Watched.made)
    np.testing.assert_equal(*(tree_map(np.asarray, x) for x in (found, wanted)))


def test_what_no_graph_can_hold_runs_as_it_is(monkeypatch, capsys):
    def reads(state: Tensor, by: Tensor) -> tuple[Tensor]:
        return (state + by.item(),)

    monkeypatch.setitem(_recorder.RECORDERS, "cpu", Watched)
    move = replayed(reads)
    state = torch.zeros(3)
    for _ in range(3):
        (state,) = move(state, torch.ones(()))
    assert state.tolist() == [3.0] * 3
    assert "not captured, steps run one by one" in capsys.readouterr().out
