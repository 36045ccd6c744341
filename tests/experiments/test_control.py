"""experiments/control: mazes, the point mass, the probe of copies, and the command."""

import itertools
import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.func import vmap

import mtlfunc as mf
from experiments.common import cells
from experiments.common.cells import Cell, state_of
from experiments.control import __main__ as command
from experiments.control import (
    cloning,
    grids,
    methods,
    networks,
    parts,
    points,
    report,
    robots,
    sac,
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


# ---- soft actor–critic and cloning, on a stand-in for Meta-World ---------------------------------


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


@pytest.fixture(scope="module")
def agent() -> tuple[sac.Learner, sac.Agent, sac.Batch]:
    learner = sac.Learner("cagrad", 1e-2, 2, 5, 2, (6, 6))
    found = learner.start(mf.random.key(0))
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(2, 4, *shape, generator=generator)

    over, real = torch.tensor([[0.0, 1.0, 0.0, 0.0]] * 2), torch.ones(2, 4)
    batch = sac.Batch(drawn(5), drawn(2).tanh(), drawn(), drawn(5), over, real)
    return learner, found._replace(temperature={"log": torch.tensor([-1.0, 0.5])}), batch


MIXED = parts.cagrad_details(10)


@pytest.fixture(scope="module")
def mixed() -> tuple[sac.Replay, sac.Batch]:
    """A replay of three tasks, transition i of task t worth 100 t + i, and a shared batch."""
    replay = sac.Replay(3, 16, 2, 1, "cpu")
    for i in range(11):
        worth = 100.0 * np.arange(3) + i
        two = np.stack([worth, worth], 1)
        replay.add(two, np.full((3, 1), 0.1 * i), worth, two + 1, np.zeros(3))
    return replay, replay.draw_shared(mf.random.key(7), 12)


def test_squashed_density_is_torchs(agent):
    _, found, batch = agent
    noise = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(1))
    actions, likelihood = sac.policy(found.actor.params, batch.seen, noise)
    x = batch.seen
    for layer in range(3):
        weight = found.actor.params[f"actor.{layer}.weight"]
        x = x @ weight.mT + found.actor.params[f"actor.{layer}.bias"]
        x = x.relu() if layer < 2 else x
    mean, spread = x.chunk(2, -1)
    normal = torch.distributions.Normal(mean, spread.exp())
    squashed = torch.distributions.TransformedDistribution(
        normal, torch.distributions.TanhTransform(cache_size=1)
    )
    torch.testing.assert_close(actions, torch.tanh(mean + spread.exp() * noise))
    torch.testing.assert_close(likelihood, squashed.log_prob(actions).sum(-1), rtol=1e-3, atol=1e-4)


def test_goals_and_losses_of_the_critic_are_written_out(agent):
    _, found, batch = agent
    noise = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(2))
    wanted = sac.goals(found, batch, noise, 0.99)
    actions, likelihood = sac.policy(found.actor.params, batch.after, noise)
    ahead = sac.values(found.target, batch.after, actions)
    now = sac.values(found.critic.params, batch.seen, batch.actions)
    losses = sac.critic_losses(found.critic.params, (batch, wanted))
    for task in range(2):
        temperature, errors = math.exp([-1.0, 0.5][task]), []
        for i in range(4):
            lower = min(float(q[task, i]) for q in ahead)
            soft = lower - temperature * float(likelihood[task, i])
            expected = float(batch.rewards[task, i]) + (0 if i == 1 else 0.99 * soft)
            assert float(wanted[task, i]) == pytest.approx(expected, abs=1e-5)
            errors.append(sum((float(q[task, i]) - expected) ** 2 for q in now))
        assert float(losses[task]) == pytest.approx(sum(errors) / 4, rel=1e-4)


def test_losses_of_the_actor_are_written_out(agent):
    _, found, batch = agent
    noise = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(3))
    critic, temperature = found.critic.params, found.temperature["log"].exp()
    losses = sac.actor_losses(found.actor.params, (batch, noise, critic, temperature))
    actions, likelihood = sac.policy(found.actor.params, batch.seen, noise)
    both = sac.values(critic, batch.seen, actions)
    for task in range(2):
        terms = [
            float(temperature[task] * likelihood[task, i]) - min(float(q[task, i]) for q in both)
            for i in range(4)
        ]
        assert float(losses[task]) == pytest.approx(sum(terms) / 4, abs=1e-5)


def test_an_update_moves_every_part_as_written(agent):
    """The slow critic by its share; a temperature up where actions are more certain than wanted."""
    learner, found, batch = agent
    after = learner.update(found, batch, mf.random.key(5))
    for name, slow in found.target.items():
        expected = slow + 0.005 * (after.critic.params[name] - slow)
        torch.testing.assert_close(after.target[name], expected)
        assert not torch.equal(after.critic.params[name], found.critic.params[name])
    noise = mf.random.normal(mf.random.key(5), (2, *batch.actions.shape))
    _, likelihood = sac.policy(found.actor.params, batch.seen, noise[1])
    certain = likelihood.mean(-1) > 2  # the entropy that is wanted is minus the number of actions
    moved = after.temperature["log"] - found.temperature["log"]
    assert torch.equal(moved > 0, certain)
    # Adam's first step has the length of the rate
    torch.testing.assert_close(moved.abs(), torch.full((2,), 1e-2), rtol=1e-3, atol=0)


def test_a_shared_batch_is_drawn_from_all_transitions(mixed):
    replay, batch = mixed
    real = batch.real.bool()
    assert int(real.sum()) == 12
    assert int(real.sum(1).max()) == real.shape[1]
    for task in range(3):
        worth = batch.rewards[task][real[task]]
        assert ((worth >= 100 * task) & (worth < 100 * task + 11)).all()  # 11 of 16 places filled
        assert torch.equal(batch.seen[task, :, 0], batch.rewards[task])
    # tasks and transitions come up as often as by chance: 12,000 draws, five deviations
    many = replay.draw_shared(mf.random.key(8), 12_000)
    counts = many.real.sum(1)
    assert ((counts - 4_000).abs() < 5 * (12_000 * 2 / 9) ** 0.5).all()
    first = (many.rewards % 100 == 0) & many.real.bool()
    assert abs(int(first.sum()) - 12_000 / 11) < 5 * (12_000 * 10 / 121) ** 0.5


def test_losses_over_a_shared_batch_are_means_over_each_tasks_own(mixed):
    _, batch = mixed
    # codes stand last, and are not seen
    padded = batch._replace(seen=torch.cat([batch.seen / 100, networks.codes(batch.seen)], -1))
    learner = sac.Learner("cagrad", 1e-2, 3, 5, 1, (4,), MIXED)
    agent = learner.start(mf.random.key(1))
    assert agent.actor.params["actor.0.weight"].shape == (4, 2)  # no code
    assert agent.temperature["log"].shape == ()
    generator = torch.Generator().manual_seed(3)
    wanted = torch.randn(batch.real.shape, generator=generator)
    noise = torch.randn(batch.actions.shape, generator=generator)
    warm = torch.tensor([0.3, 0.3, 0.3])
    critic = sac.critic_losses(agent.critic.params, (padded, wanted))
    actor = sac.actor_losses(
        agent.actor.params, (padded, noise, agent.critic.params, warm), squashed=True
    )
    one, two = sac.values(agent.critic.params, padded.seen, padded.actions)
    actions, likelihood = sac.policy(agent.actor.params, padded.seen, noise, squashed=True)
    lower = torch.minimum(*sac.values(agent.critic.params, padded.seen, actions))
    for task in range(3):
        own = [i for i in range(batch.real.shape[1]) if batch.real[task, i]]
        errors = [float((q[task, i] - wanted[task, i]) ** 2) for i in own for q in (one, two)]
        assert float(critic[task]) == pytest.approx(sum(errors) / len(own), rel=1e-5)
        terms = [float(0.3 * likelihood[task, i] - lower[task, i]) for i in own]
        assert float(actor[task]) == pytest.approx(sum(terms) / len(own), rel=1e-5)
    absent = padded._replace(real=padded.real * torch.tensor([[1.0], [0.0], [1.0]]))
    assert float(sac.critic_losses(agent.critic.params, (absent, wanted))[1]) == 0


def test_log_deviations_are_mapped_between_their_bounds():
    params = {"actor.0.weight": torch.tensor([[0.0], [1.0]]), "actor.0.bias": torch.zeros(2)}
    for raw, expected in (
        (0.0, -9.0),
        (50.0, 2.0),
        (-50.0, -20.0),
        (0.5, -9 + 11 * math.tanh(0.5)),
    ):
        seen = torch.full((1, 1, 1), raw)
        noise = torch.full((1, 1, 1), 1e-2)
        actions, _ = sac.policy(params, seen, noise, squashed=True)
        assert float(actions) == pytest.approx(math.tanh(math.exp(expected) * 1e-2), rel=1e-4)


def test_first_weights_are_xaviers():
    drawn = networks.start(mf.random.key(0), "net", (30, 50, 20), 2, "mean", xavier=True)
    for layer, (into, out) in enumerate(((30, 50), (50, 20))):
        bound, weight = math.sqrt(6 / (into + out)), drawn[f"net.{layer}.weight"]
        assert 0.98 * bound < float(weight.abs().max()) <= bound
        # of a uniform variable the square has mean 1/3 and variance 4/45
        square = float((weight / bound).square().mean())
        assert abs(square - 1 / 3) < 5 * math.sqrt(4 / 45 / weight.numel())
        assert not drawn[f"net.{layer}.bias"].any()


def test_rewards_are_divided_by_their_running_deviation():
    rewards, generator = sac.Rewards(2), np.random.default_rng(0)
    mean, variance = [0.0, 0.0], [1.0, 1.0]
    for _ in range(50):
        given = generator.normal(5, 3, 2)
        found = rewards(given)
        for task in range(2):
            mean[task] = 0.999 * mean[task] + 0.001 * given[task]
            variance[task] = 0.999 * variance[task] + 0.001 * (given[task] - mean[task]) ** 2
            assert found[task] == pytest.approx(given[task] / (math.sqrt(variance[task]) + 1e-8))


@pytest.mark.parametrize("name", [*methods.RULES, methods.HEADS, methods.INDEPENDENT])
def test_one_temperature_is_balanced_as_the_networks_are(name):
    learner = sac.Learner(name, 1e-2, 3, 5, 1, (4,), MIXED)
    agent, generator = learner.start(mf.random.key(2)), torch.Generator().manual_seed(1)
    drawn = torch.randn(3, 6, 2, generator=generator)
    seen = torch.cat([drawn, networks.codes(drawn)], -1)
    real = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2, [1.0] * 5 + [0.0]])
    batch = sac.Batch(seen, torch.zeros(3, 6, 1), torch.zeros(3, 6), seen, torch.zeros(3, 6), real)
    after = learner.update(agent, batch, mf.random.key(5))
    noise = mf.random.normal(mf.random.key(5), (2, *batch.actions.shape))
    _, likelihood = sac.policy(agent.actor.params, seen, noise[1], squashed=True)
    # where all slopes have one sign, every rule follows them; Adam's first step has the rate's size
    slopes = [-float((likelihood[t] - 1)[real[t] > 0].mean()) for t in range(3)]
    assert len({slope > 0 for slope in slopes}) == 1
    moved = float(after.temperature["log"])
    assert moved == pytest.approx(-1e-2 if slopes[0] > 0 else 1e-2, rel=1e-3)


def test_the_published_set_up_is_that_of_cagrads_command(tmp_path):
    """Values as its repository's `run.sh` and the configuration files that it names have them."""
    for name, tasks, c in (("mt10", 10, 0.9), ("mt50", 50, 0.5)):
        part = parts.sac_part(name, "full", ("mean", "cagrad"), (0, 1), "cpu", tmp_path, "cagrad")
        found, details = part.settings, part.settings.details
        assert (found.batch, found.steps, found.random) == (1_280, 2_000_000, 1_500)
        assert (found.hidden, found.discount, found.horizon) == ((400, 400, 400), 0.99, 150)
        assert found.capacity * tasks == 1_000_000
        assert (found.every, found.episodes, found.reward, found.scaled) == (10_000, 1, "v1", False)
        assert details == sac.Details(c, False, False, False, True, True, True, False, True)
        assert part.plan.rates == (3e-4,)
        assert list(part.plan.methods) == ["mean", "cagrad", methods.HEADS, methods.INDEPENDENT]
        ours = parts.sac_part(name, "full", ("mean", "cagrad"), (0, 1), "cpu", tmp_path)
        assert ours.settings.details == sac.OURS
        assert ours.name != part.name  # results of both stay
        assert methods.BLIND in ours.plan.methods
    _, rule = methods.probe_and_rule("cagrad", c=0.9)
    gramian = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
    geometry = mf.Geometry(torch.ones(2), gramian, torch.full((2,), 0.5), torch.ones(2) > 0, {})
    weights, expected = (
        each.update(geometry, each.init(torch.ones(2), mf.random.key(0)))[0]
        for each in (rule, mf.cagrad(0.9))
    )
    assert torch.equal(weights, expected)


def test_a_run_in_the_published_set_up_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """Ten updates follow the ten random steps at once; rewards' deviations are kept."""
    cell, settings = Cell("sac", "cagrad", "", 1e-3, 0), settings_of_sac(steps=60, details=MIXED)
    made: list[int] = []
    real, calls = sac.Learner.update, []

    def make(seed: int) -> Lines:
        made.append(seed)
        return Lines(seed)

    def stopping(self, *rest):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(self, *rest)

    monkeypatch.setattr(sac.Learner, "update", stopping)
    stop = 45
    with pytest.raises(KeyboardInterrupt):
        sac.perform(make, tmp_path, settings, cell)
    state = cells.kept_state(state_of(tmp_path, cell), settings, cell, "cpu")["run"]
    assert state["step"] == 40
    assert (state["rewards"].variance != 1).all()
    stop = -1
    sac.perform(make, tmp_path, settings, cell)
    # 10 at once, 29 to step 40, the five that were lost, 20 more
    assert len(calls) == (10 + 29) + 6 + 20
    assert set(made) == {0}  # the goals that are learnt are those that are measured


def test_replay_keeps_the_last_and_draws_what_it_keeps():
    replay = sac.Replay(2, 4, 3, 1, "cpu")
    for i in range(6):
        one = np.array([i, i + 100.0])
        replay.add(np.repeat(one[:, None], 3, 1), one[:, None], one, one[:, None] + 1, one < 0)
    drawn = replay.draw(mf.random.key(0), 64)
    assert set(drawn.rewards[0].tolist()) == {2.0, 3.0, 4.0, 5.0}
    assert set(drawn.rewards[1].tolist()) == {102.0, 103.0, 104.0, 105.0}
    assert torch.equal(drawn.after[..., 0], drawn.rewards + 1)
    assert torch.equal(drawn.seen[..., 0], drawn.rewards)
    early = sac.Replay(1, 4, 1, 1, "cpu")
    early.add(*(np.ones((1, *([] if i in (2, 4) else [1]))) for i in range(5)))
    assert early.draw(mf.random.key(0), 9).rewards.tolist() == [[1.0] * 9]


def test_ends_are_stored_with_what_was_seen_last_and_measured():
    envs = Lines()
    envs.reset(seed=3)
    ahead = np.array([[1.0], [1.0]])  # right for task 0, wrong for task 1
    for _ in range(Lines.length - 1):
        envs.step(ahead)
    before = envs.at.copy()
    after, _, over, late, info = envs.step(ahead)
    assert late.all()
    assert not over.any()
    found = sac.last_seen(after, late, info)
    np.testing.assert_allclose(found[:, 0], before + 0.2, rtol=1e-6)
    assert np.abs(after[:, 0]).max() <= 0.2
    assert sac.last_seen(after, over, info) is after
    success, returns = sac.measure(lambda seen: torch.ones(2, 1, 1), Lines(), 3, "cpu", 5)
    assert success.tolist() == [1.0, 0.0]
    assert returns[0] > returns[1]
    idle, _ = sac.measure(lambda seen: torch.zeros(2, 1, 1), Lines(), 2, "cpu", 5)
    assert idle.tolist() == [0.0, 0.0]


def test_a_run_that_was_stopped_goes_on_where_it_measured(tmp_path, monkeypatch):
    cell, settings = Cell("sac", "mean", "", 1e-3, 0), settings_of_sac(steps=60)
    real, calls = sac.Learner.update, []

    def stopping(self, *rest):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(self, *rest)

    monkeypatch.setattr(sac.Learner, "update", stopping)
    stop = 35  # after the second measurement, at 40 steps
    with pytest.raises(KeyboardInterrupt):
        sac.perform(Lines, tmp_path, settings, cell)
    stop = -1
    numbers = sac.perform(Lines, tmp_path, settings, cell)
    assert len(calls) == 35 + 20
    assert len(numbers["curve"]) == 3
    # until the numbers are kept
    assert [path.name for path in tmp_path.iterdir()] == [state_of(tmp_path, cell).name]
    with pytest.raises(ValueError, match="fewer than the 20 between"):
        sac.perform(Lines, tmp_path, settings._replace(steps=10), cell)


def test_a_state_is_kept_by_time_as_well(tmp_path, monkeypatch):
    """Measurements are hours apart: what is lost by a kill is ten minutes."""
    cell, settings = Cell("sac", "mean", "", 1e-3, 0), settings_of_sac(steps=60, every=60)
    now, real, calls = [0.0], sac.Learner.update, []
    monkeypatch.setattr(sac.time, "monotonic", lambda: now[0])

    def stopping(self, *rest):
        calls.append(1)
        now[0] += 100.0
        if len(calls) == 30:
            raise KeyboardInterrupt
        return real(self, *rest)

    monkeypatch.setattr(sac.Learner, "update", stopping)
    with pytest.raises(KeyboardInterrupt):
        sac.perform(Lines, tmp_path, settings, cell)
    kept = cells.kept_state(state_of(tmp_path, cell), settings, cell, "cpu")
    # of steps 11 to 40, seven each after ten random ones
    assert kept["run"]["step"] == kept["replay"]["count"] == 10 + 28
    sac.perform(Lines, tmp_path, settings, cell)
    assert len(calls) == 30 + 22


def test_environments_begin_alike_after_a_seed():
    class LateSeed(Lines):
        """Draws where it begins before it looks at the seed, as Meta-World does."""

        def reset(self, *, seed=None):
            found = super().reset()
            if seed is not None:
                self.call("seed", seed)
            return found

        def call(self, name, seed):
            self.generator = np.random.default_rng(seed)

    late, envs = LateSeed(), robots.Seeded(LateSeed())
    assert not np.array_equal(late.reset(seed=5)[0], late.reset(seed=5)[0])
    one = envs.reset(seed=5)[0]
    envs.step(np.ones((2, 1)))
    assert np.array_equal(one, envs.reset(seed=5)[0])
    assert not np.array_equal(one, envs.reset(seed=6)[0])


def test_a_goal_that_is_fixed_is_the_same_in_every_episode():
    class Goals(Lines):
        """Draws a goal at every reset until it is told not to, as Meta-World does."""

        drawing = True

        def reset(self, *, seed=None):
            found = super().reset()
            if self.drawing:
                self.goal = float(self.generator.uniform())
            return found

        def call(self, name, value):
            if name == "seed":
                self.generator = np.random.default_rng(value)
            else:
                assert name == "toggle_sample_tasks_on_reset"
                self.drawing = value

    def goals(seed: int, fixed: bool) -> list[float]:
        stub = Goals()
        envs, found = robots.Seeded(stub), []
        if fixed:
            envs.fix_goals(seed)
        for episode in range(3):
            envs.reset(seed=100 + episode)
            found.append(stub.goal)
        return found

    assert len(set(goals(0, False))) == 3
    assert len(set(goals(0, True))) == 1
    assert goals(0, True) == goals(0, True) != goals(1, True)


def test_experts_and_environments_are_equal_by_what_they_make():
    for made in (robots.Environments("MT10", 200), robots.Expert("MT10")):
        again = pickle.loads(pickle.dumps(made))
        assert again == made
        assert hash(again) == hash(made)


def test_what_diverges_has_no_numbers(tmp_path):
    """A rate of 1e30: the rule refuses NaN, the run ends, and is never chosen."""
    settings = settings_of_sac(steps=60)
    numbers = sac.perform(Lines, tmp_path, settings, Cell("sac", "mgda", "", 1e30, 0))
    assert math.isnan(numbers["score"])
    assert len(numbers["curve"]) == len(numbers["returns"]) == 3
    copied = cloning.Settings("lines", "v2", 1, 8, 4, (4,), 1, "cpu")
    numbers = cloning.perform(Lines, lines_expert, copied, Cell("", "mgda", "", 1e30, 0))
    assert math.isnan(numbers["score"])


def test_soft_actor_critic_learns_two_opposite_tasks(tmp_path):
    settings = settings_of_sac(steps=400, random=100, batch=32, hidden=(32,), capacity=400)
    settings = settings._replace(every=400, episodes=4, discount=0.9)
    numbers = sac.perform(Lines, tmp_path, settings, Cell("sac", "mean", "", 2e-2, 0))
    assert numbers["tasks"] == [1.0, 1.0]


def lines_expert(seen: np.ndarray) -> np.ndarray:
    return np.clip(3 * (np.array([[1.0], [-1.0]]) - seen[:, :1]), -1, 1)


def test_cloning_imitates_up_to_success():
    shown = cloning.demonstrate(Lines(), lines_expert, 2, 0)
    for task, goal in enumerate((1.0, -1.0)):
        count = int(shown.counts[task])
        seen = shown.seen[task, :count]
        assert ((seen[:, 0] - goal).abs() > 0.25).all()  # nothing after a success
        assert torch.equal(seen[:, 1:], torch.eye(2)[task].expand(count, 2))
        expected = lines_expert(np.repeat(seen.numpy()[None], 2, 0)[:, 0])[task]
        assert shown.actions[task, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
        assert not shown.seen[task, count:].any()
    settings = cloning.Settings("lines", "v2", 3, 50, 16, (16,), 4, "cpu")
    numbers, blind = (
        cloning.perform(Lines, lines_expert, settings, Cell("", name, "", 3e-2, 0))
        for name in ("pcgrad", methods.BLIND)
    )
    assert numbers["tasks"] == [1.0, 1.0]
    assert numbers["error"] < 0.2 * blind["error"]


def test_without_the_extra_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(robots, "EXTRA", ("torch", "no_such_package"))
    argv = ["--parts", "sac,grids", "--out", str(tmp_path), "--workers", "1"]
    assert command.main(argv) == 2
    said = capsys.readouterr().err
    assert "Not installed: no_such_package" in said
    assert 'pip install -e ".[control]"' in said
    ran: list[str] = []
    monkeypatch.setattr(command, "run", lambda part, out, workers: ran.append(part.name))
    assert command.main(["--full", "--out", str(tmp_path)]) == 0
    assert "left out: cloning, sac" in capsys.readouterr().err
    assert ran == ["grids", "points"]
    monkeypatch.setattr(robots, "EXTRA", ("torch",))
    assert command.main(["--full", "--out", str(tmp_path)]) == 0
    assert ran[2:] == ["grids", "points", "cloning", "sac"]


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


def test_a_stopped_command_goes_on(tmp_path, monkeypatch, capsys):
    """After Ctrl-C in the third method, two are kept; the same command performs the rest only."""
    performed, real = [], grids.perform

    def counted(settings, cells):
        if len(performed) == stop:
            raise KeyboardInterrupt
        performed.append(cells)
        return real(grids.Settings(12, "cpu"), cells)

    monkeypatch.setattr(grids, "perform", counted)
    argv = ["--quick", "--parts", "grids", "--rules", "mean,cagrad", "--workers", "1"]
    argv += ["--seeds", "2", "--out", str(tmp_path)]
    stop = 2
    assert command.main(argv) == 130
    assert "16 finished runs are kept" in capsys.readouterr().err
    stop = -1
    assert command.main(argv) == 0
    every = [cell for cells in performed for cell in cells]
    assert len(set(every)) == len(every)
    results = json.loads((tmp_path / "grids" / "results.json").read_text(encoding="utf-8"))
    assert list(results["methods"]) == ["mean", "cagrad", methods.SCALES_UNDONE]
    shown = (tmp_path / "grids" / "table.md").read_text(encoding="utf-8")
    assert "for the 2 rivals of the mean" in shown
    assert "rises exponentially: not known" in shown  # two looks
    assert "nan" not in shown
    assert (tmp_path / "grids" / "grids.png").read_bytes()[:4] == b"\x89PNG"
    runs = results["methods"]["cagrad"]["runs"], results["methods"]["mean"]["runs"]
    differences = [a["area"] - b["area"] for a, b in zip(*runs, strict=True)]
    summary = results["methods"]["cagrad"]["summary"]["against_mean"]["area"]
    assert summary["mean"] == pytest.approx(sum(differences) / 2)


def test_command_refuses(tmp_path, capsys):
    for argv, said in (
        (["--parts", "grids,nosuch"], "unknown 'nosuch'; choose from"),
        (["--data", str(tmp_path)], "unrecognized arguments: --data"),
        (["--setting", "cagrad"], "cagrad is a set-up of sac, mt10, mt50, not of grids, points"),
        (["--setting", "theirs", "--parts", "mt10"], "invalid choice: 'theirs'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command.main([*argv, "--out", str(tmp_path)])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
