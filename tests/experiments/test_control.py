"""experiments/control: mazes, the point mass, soft actor–critic on a stand-in robot."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mtlfunc as mf
from common.cells import Cell
from experiments.control import grids, methods, points, sac


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
            lambda s, ahead, chances=chances: float(np.dot(chances[s], ahead)), moves, goal
        )
        assert found[task].tolist() == pytest.approx(expected, abs=1e-12)
        best = literal_values(lambda _, ahead: max(ahead), moves, goal)
        assert float(mazes.best[task]) == pytest.approx(sum(best) / 25, abs=1e-12)


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


@pytest.fixture(scope="module")
def explored() -> tuple[mf.types.Params, points.Memory]:
    params, key = points.start(mf.random.key(1), "mean"), mf.random.key(2)
    params = params | {"spread": torch.tensor([-0.3, 0.2])}
    return params, points.explore(params, points.world(key), key)


def test_losses_of_points_are_their_literal_formulas(explored):
    params, memory = explored
    moved = {name: leaf + 0.02 for name, leaf in params.items()}
    policy, value = points.policy_losses(moved, memory), points.value_losses(moved, memory)
    for task in (0, 7):
        wins, errors = [], []
        for t, e in itertools.product(range(points.HORIZON), range(points.EPISODES)):
            x = torch.cat([memory.seen[t, task, e], torch.eye(points.TASKS)[task]])
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


def test_copies_give_the_step_of_the_jacobian(explored):
    params, memory = explored
    params = {name: leaf for name, leaf in params.items() if not name.startswith("value")}
    for name in ("cagrad", "pcgrad"):
        found = []
        for probe in (methods.copies(points.TASKS), mf.jacobian()):
            step = mf.balance(points.policy_losses, methods.probe_and_rule(name)[1], probe)
            found.append(step.update(params, memory, step.init(params, memory, 3)))
        (ours, _, info), (theirs, _, reference) = found
        torch.testing.assert_close(info.gramian, reference.gramian, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(info.weights, reference.weights, rtol=1e-3, atol=1e-5)
        for leaf in params:
            torch.testing.assert_close(ours[leaf], theirs[leaf], rtol=1e-3, atol=1e-6)


class Lines:
    """Points on a line; task 1's goal lies the other way. Ends are of time, and begun anew."""

    num_envs, length = 2, 10

    def __init__(self, seed: int = 0) -> None:
        self.single_observation_space = SimpleNamespace(shape=(3,))
        self.single_action_space = SimpleNamespace(shape=(1,))
        self.generator = np.random.default_rng(seed)

    def reset(self, *, seed=None):
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        self.at, self.time = self.generator.uniform(-0.2, 0.2, 2), 0
        return self.seen(), {}

    def seen(self):
        return np.concatenate([self.at[:, None], np.eye(2)], 1).astype(np.float32)

    def step(self, actions):
        self.at = self.at + 0.2 * np.clip(actions[:, 0], -1, 1)
        self.time += 1
        away = np.abs(self.at - np.array([1.0, -1.0]))
        reached = (away < 0.25).astype(float)
        info, late = {"success": reached}, np.full(2, self.time == self.length)
        if late[0]:
            last = np.empty(2, object)
            last[:] = list(self.seen())
            info = {"final_obs": last, "final_info": {"success": reached}}
            self.reset()
        return self.seen(), -away, np.zeros(2, bool), late, info


def settings_of_sac(**changes) -> sac.Settings:
    settings = sac.Settings("lines", "v2", 1.0, 0.99, True, 10, 40, 10, 8, (8, 8), 32, 20, 1, "cpu")
    return settings._replace(**changes)


def test_soft_actor_critic_learns_two_opposite_tasks(tmp_path):
    settings = settings_of_sac(steps=600, random=300, batch=64, hidden=(32,), capacity=600)
    settings = settings._replace(every=600, episodes=4, discount=0.8)
    numbers = sac.perform(Lines, tmp_path, settings, Cell("sac", methods.INDEPENDENT, "", 2e-2, 0))
    assert numbers["tasks"] == [1.0, 1.0]
