"""experiments/control: mazes, the point mass, the probe of copies, and the command."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from common.cells import Cell
from experiments.control import __main__ as command
from experiments.control import (
    grids,
    methods,
    parts,
    points,
    report,
)

# ---- mazes ---------------------------------------------------------------------------------------


def test_a_move_slips_to_a_random_action():
    found = grids.moves()
    deltas = [(0, 1), (0, -1), (1, 0), (-1, 0)]
    for action, field in itertools.product(range(4), range(25)):
        expected = [0.0] * 25
        for other, (down, right) in enumerate(deltas):
            row, column = field // 5 + down, field % 5 + right
            there = row * 5 + column if 0 <= row < 5 and 0 <= column < 5 else None
            row, column = max(0, min(4, row)), max(0, min(4, column))
            assert there in (None, row * 5 + column)
            chance = grids.SLIP / 4 + (1 - grids.SLIP if other == action else 0)
            expected[row * 5 + column] += chance
        assert found[action, field].tolist() == pytest.approx(expected)


def literal_values(choose, moves, goal, rounds=400):
    """Sweeps of v(s) = 1 at the goal, else DISCOUNT · choose(Σ_n P(n | s, a) v(n) by action)."""
    values = [0.0] * 25
    for _ in range(rounds):
        ahead = moves @ torch.tensor(values, dtype=torch.float64)
        values = [
            1.0 if s == goal else grids.DISCOUNT * choose(s, ahead[:, s].tolist())
            for s in range(25)
        ]
    return values


def test_values_and_best_values_are_those_of_sweeps():
    mazes = grids.mazes(mf.random.key(2))
    policy = grids.policy(grids.start(mf.random.key(3)))
    found = grids.values(policy, mazes.moves, mazes.goals)
    for task in (0, 3):
        goal, moves = int(mazes.goals[task].argmax()), mazes.moves[task]
        chances = policy[task].tolist()
        expected = literal_values(
            lambda s, ahead, chances=chances: float(np.dot(chances[s], ahead)),
            moves,
            goal,
        )
        assert found[task].tolist() == pytest.approx(expected, abs=1e-12)
        best = literal_values(lambda _, ahead: max(ahead), moves, goal)
        assert float(mazes.best[task]) == pytest.approx(sum(best) / 25, abs=1e-12)


def test_mazes_differ_in_goals_and_permute_actions():
    found = grids.mazes(mf.random.key(0))
    assert len(set(found.goals.argmax(-1).tolist())) == grids.TASKS
    plain = {tuple(action.flatten().tolist()) for action in grids.moves()}
    for task in found.moves:
        assert {tuple(action.flatten().tolist()) for action in task} == plain


def test_policy_gradients_are_those_of_differences():
    batch, params = grids.mazes(mf.random.key(1)), grids.start(mf.random.key(1))
    rows = torch.func.jacrev(grids.losses)(params, batch)
    for name, leaf in params.items():
        for at in ((0,) * leaf.dim(), tuple(n - 1 for n in leaf.shape)):
            bump = torch.zeros_like(leaf)
            bump[at] = 1e-5
            ahead, behind = (
                grids.losses(params | {name: leaf + sign * bump}, batch) for sign in (1, -1)
            )
            torch.testing.assert_close(
                rows[name][(slice(None), *at)], (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-9
            )


def test_curvature_that_is_looked_at_is_the_second_derivative_along_the_gradient():
    batch, params = grids.mazes(mf.random.key(1)), grids.start(mf.random.key(1))
    total = torch.func.grad(lambda p: grids.losses(p, batch).sum())(params)
    square = sum(float(leaf.square().sum()) for leaf in total.values())

    def loss(t: float) -> float:
        at = {name: leaf + t * total[name] for name, leaf in params.items()}
        return float(grids.losses(at, batch).sum())

    step = 1e-4
    second = (loss(step) - 2 * loss(0.0) + loss(-step)) / step**2
    curvature, conflict, similarity = grids._look(params, batch).tolist()
    assert curvature == pytest.approx(second / square, rel=1e-5)
    assert 6 * conflict == pytest.approx(round(6 * conflict))
    assert 0 < similarity < 1


# ---- the point mass ------------------------------------------------------------------------------


def test_a_step_of_the_points_is_its_literal_loop():
    world = points.world(mf.random.key(4))
    begun = points.begin(mf.random.key(5), 3)
    begun = begun._replace(speed=mf.random.normal(mf.random.key(6), begun.at.shape))
    actions = 2 * mf.random.normal(mf.random.key(7), begun.at.shape)
    after, rewards = points.move(world, begun, actions)
    for task, episode in itertools.product(range(points.TASKS), range(3)):
        x, y = (max(-1.0, min(1.0, float(a))) for a in actions[task, episode])
        (a, b), (c, d) = world.turns[task].tolist()
        assert a * d - b * c == pytest.approx(1)  # turned, neither stretched nor mirrored
        push = (a * x + b * y, c * x + d * y)
        for i in range(2):
            speed = 0.8 * float(begun.speed[task, episode, i]) + 0.2 * push[i]
            at = float(begun.at[task, episode, i]) + 0.15 * speed
            assert float(after.speed[task, episode, i]) == pytest.approx(speed, abs=1e-5)
            assert float(after.at[task, episode, i]) == pytest.approx(at, abs=1e-5)
        away = math.dist(after.at[task, episode].tolist(), world.goals[task].tolist())
        assert float(rewards[task, episode]) == pytest.approx(-away, abs=1e-5)
    assert (begun.at.abs() <= 0.1).all()
    assert sorted(world.goals.norm(dim=-1).tolist()) == pytest.approx([1.0] * points.TASKS)


def test_advantages_are_discounted_sums_of_surprises():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    values = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    advantages, returns = points.estimates(rewards, values)
    discount, trace = points.DISCOUNT, points.TRACE
    for t, i in itertools.product(range(6), range(2)):
        expected = sum(
            (discount * trace) ** (s - t)
            * float(rewards[s, i] + discount * values[s + 1, i] - values[s, i])
            for s in range(t, 6)
        )
        assert float(advantages[t, i]) == pytest.approx(expected)
        assert float(returns[t, i]) == pytest.approx(expected + float(values[t, i]))


def test_surrogate_is_clipped_where_that_is_worse():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 3.0])
    expected = [1.2 * 2, 1.5 * -2, 0.5 * 2, 0.8 * -2, 1.1 * 3]
    assert points.surrogate(ratio, advantages).tolist() == pytest.approx(expected)


@pytest.fixture(scope="module")
def explored() -> tuple[mf.types.Params, points.Memory]:
    params, key = points.start(mf.random.key(1), "mean"), mf.random.key(2)
    params = params | {"spread": torch.tensor([-0.3, 0.2])}
    return params, points.explore(params, points.world(key), key)


def test_memory_is_what_was_done(explored):
    params, memory = explored
    world = points.world(mf.random.key(2))
    at, speed = memory.seen[..., :2], memory.seen[..., 2:]
    for t in (0, points.HORIZON - 2):
        after, _ = points.move(world, points.Points(at[t], speed[t]), memory.actions[t])
        torch.testing.assert_close(after.at, at[t + 1])
        mean = points.network(params, "policy", memory.seen[t])
        density = torch.distributions.Normal(mean, params["spread"].exp())
        torch.testing.assert_close(
            memory.likelihood[t], density.log_prob(memory.actions[t]).sum(-1)
        )
    flat = memory.advantages.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(-1), torch.zeros(points.TASKS), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(-1, correction=0), torch.ones(points.TASKS))


def test_losses_of_points_are_their_literal_formulas(explored):
    params, memory = explored
    moved = {name: leaf + 0.02 for name, leaf in params.items()}
    policy, value = points.policy_losses(moved, memory), points.value_losses(moved, memory)
    for task in (0, 7):
        wins, errors = [], []
        for t, e in itertools.product(range(points.HORIZON), range(points.EPISODES)):
            code = torch.eye(points.TASKS)[task]
            x = torch.cat([memory.seen[t, task, e], code])
            out = {}
            for net in ("policy", "value"):
                h = x
                for layer in range(3):
                    h = moved[f"{net}.{layer}.weight"] @ h + moved[f"{net}.{layer}.bias"]
                    h = torch.tanh(h) if layer < 2 else h
                out[net] = h
            z = (memory.actions[t, task, e] - out["policy"]) / moved["spread"].exp()
            logs = -z.square() / 2 - moved["spread"] - math.log(2 * math.pi) / 2
            ratio = math.exp(float(logs.sum() - memory.likelihood[t, task, e]))
            advantage = float(memory.advantages[t, task, e])
            wins.append(min(ratio * advantage, max(0.8, min(1.2, ratio)) * advantage))
            errors.append(float(out["value"] - memory.returns[t, task, e]) ** 2)
        assert float(policy[task]) == pytest.approx(-sum(wins) / len(wins), abs=1e-5)
        assert float(value[task]) == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_independent_networks_have_losses_of_their_own():
    params = points.start(mf.random.key(1), methods.INDEPENDENT)
    key = mf.random.key(2)
    memory = points.explore(params, points.world(key), key)
    for losses in (points.policy_losses, points.value_losses):
        rows = torch.func.jacrev(losses)(params, memory)
        for name, row in rows.items():
            if row.any():
                own = row.flatten(2).norm(dim=-1)
                assert torch.equal(own, own.diagonal().diag()), name
                assert (own.diagonal() > 0).all()


def test_copies_give_the_step_of_the_jacobian(explored):
    params, memory = explored
    params = {name: leaf for name, leaf in params.items() if not name.startswith("value")}
    both = {name: torch.stack([leaf, 0.9 * leaf]) for name, leaf in params.items()}
    for name in ("cagrad", "pcgrad"):
        found = []
        for probe in (methods.copies(points.TASKS), mf.jacobian()):
            step = mf.balance(points.policy_losses, methods.probe_and_rule(name)[1], probe)
            state = step.init(params, memory, 3)
            found.append(step.update(params, memory, state))
        (ours, _, info), (theirs, _, reference) = found
        torch.testing.assert_close(info.gramian, reference.gramian, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(info.weights, reference.weights, rtol=1e-3, atol=1e-5)
        for leaf in params:
            torch.testing.assert_close(ours[leaf], theirs[leaf], rtol=1e-3, atol=1e-6)
    step = mf.balance(points.policy_losses, mf.cagrad(0.5), methods.copies(points.TASKS))
    together = vmap(lambda p: step.update(p, memory, step.init(p, memory))[0])(both)
    for i in range(2):
        each = {name: leaf[i] for name, leaf in both.items()}
        alone = step.update(each, memory, step.init(each, memory))[0]
        for leaf in params:
            torch.testing.assert_close(together[leaf][i], alone[leaf], rtol=1e-3, atol=1e-6)


# ---- runs and the command ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*methods.RULES, methods.SCALES_UNDONE])
def test_mazes_side_by_side_are_those_alone(name):
    settings = grids.Settings(4, "cpu")
    cells = [Cell("grids", name, "", rate, seed) for rate in (0.01, 0.1) for seed in (0, 1)]
    together = grids.perform(settings, cells)
    (alone,) = grids.perform(settings, [cells[3]])
    assert together[3]["curve"] == pytest.approx(alone["curve"], abs=1e-7)
    assert len({run["final"] for run in together}) == 4
    assert alone["score"] == -alone["area"] == pytest.approx(-sum(alone["curve"]) / 5)


@pytest.mark.parametrize("name", ["cagrad", methods.HEADS, methods.BLIND, methods.INDEPENDENT])
def test_points_side_by_side_are_those_alone(name, monkeypatch):
    monkeypatch.setattr(points, "SEEN", 1)
    settings = points.Settings(1, "cpu")
    cells = [Cell("points", name, "", 0.01, seed) for seed in (0, 1)]
    together = points.perform(settings, cells)
    (alone,) = points.perform(settings, [cells[1]])
    assert together[1]["tasks"] == alone["tasks"]
    assert 0 <= alone["worst"] <= alone["final"] <= 1


def test_along_finds_an_exponential():
    rising = [[0.5 * math.exp(0.03 * 10 * i) for i in range(9)], [1.0 * 2**i for i in range(9)]]
    found = report.along(rising, 10)
    assert found.slope.mean == pytest.approx((0.03 + math.log(2) / 10) / 2)
    assert found.fit == pytest.approx(1)
    assert found.positive == 1
    flat = report.along([[1.0, -1.0, 1.0, 4.0, 4.0, 7.0]] * 2, 1)
    assert flat.positive == pytest.approx(5 / 6)
    assert flat.change.mean == pytest.approx(5.5)
    assert math.isnan(report.along([[-1.0, -1.0, 2.0]] * 2, 1).slope.mean)


def test_rates_are_chosen_on_seeds_of_no_result(tmp_path):
    given = command._parser().parse_args(["--seeds", "7:9"])
    for name, size in itertools.product(command.PARTS, parts.SIZES):
        part = command.part(name, size, given, tmp_path)
        if name in ("mt10", "mt50") and size == "full":
            # at one rate nothing is chosen: no run of days but those of the results
            assert (len(part.plan.rates), part.plan.tuning) == (1, (7,))
        else:
            assert min(part.plan.tuning) >= parts.TUNED_ON
        assert part.plan.seeds == (7, 8)
        assert all(path.is_file() for path in part.sources())


def test_the_command_compares_with_the_mean(tmp_path, monkeypatch):
    real = grids.perform
    monkeypatch.setattr(grids, "perform", lambda _, cells: real(grids.Settings(12, "cpu"), cells))
    argv = ["--quick", "--parts", "grids", "--rules", "mean,cagrad", "--workers", "1"]
    argv += ["--seeds", "2", "--out", str(tmp_path)]
    assert command.main(argv) == 0
    results = json.loads((tmp_path / "grids" / "results.json").read_text(encoding="utf-8"))
    assert list(results["methods"]) == ["mean", "cagrad", methods.SCALES_UNDONE]
    assert (tmp_path / "grids" / "grids.png").read_bytes()[:4] == b"\x89PNG"
    runs = results["methods"]["cagrad"]["runs"], results["methods"]["mean"]["runs"]
    differences = [a["area"] - b["area"] for a, b in zip(*runs, strict=True)]
    summary = results["methods"]["cagrad"]["summary"]["against_mean"]["area"]
    assert summary["mean"] == pytest.approx(sum(differences) / 2)
