"""Soft actor–critic and cloning, on a stand-in for Meta-World."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mtlfunc as mf
from common import cells
from common.cells import Cell, state_of
from experiments.control import (
    cloning,
    methods,
    networks,
    parts,
    robots,
    sac,
)


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
