"""Soft actor–critic for many tasks at once, critic and actor each balanced by a rule.

The environments are a vector of one per task, with gymnasium's interface: `reset(seed=)` gives
observations `[task, input]` that end with the task's one-hot code, `step(actions)` five values;
what ends is begun again in the same step, its last observation in `info["final_obs"]`. Every task
has a replay; everything else is set up as CAGrad's own command does it (README.md).
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import mtlfunc as mf
from common.cells import Cell, Refusal, Resumable, state_of
from common.progress import Progress
from common.study import Numbers
from mtlfunc.types import Params, TrainState

from . import networks
from .methods import measured, probe_and_rule

SLOW = 0.005  # share of the critics that their slow copies take over a step

KEPT_EVERY = 600.0
"""Seconds after which the state is kept: at least, where writing it takes a hundredth of them."""

WIDE, NARROW = 2.0, -20.0  # bounds of the log of the actions' deviation


Environments = Any  # one environment a task, side by side, with the interface above


class Settings(NamedTuple):
    """What a run depends on besides its cell."""

    benchmark: str
    reward: str  # the version of the rewards
    scale: float  # of the rewards that are learnt from
    discount: float
    scaled: bool  # observations, by their mean and deviation under random actions
    horizon: int  # steps of an episode
    steps: int  # of every environment
    random: int  # first ones, with random actions and without learning
    batch: int  # samples of all tasks together, drawn from all transitions
    hidden: tuple[int, ...]
    capacity: int  # of every task's replay
    every: int  # steps between two measurements of success
    episodes: int  # a measurement
    device: str
    c: float = 0.9  # the radius of CAGrad


class Batch(NamedTuple):
    """Transitions `[task, sample, ...]`."""

    seen: Tensor
    actions: Tensor
    rewards: Tensor
    after: Tensor
    over: Tensor  # 1.0 where the task ended there, rather than its time
    real: Tensor  # 1.0 for a sample, 0.0 for what fills up tasks that have fewer than others


class Agent(NamedTuple):
    """All that learns."""

    actor: TrainState
    critic: TrainState
    target: Params
    temperature: TrainState  # of its logarithm, which all tasks share


def mean_of(values: Tensor, real: Tensor) -> Tensor:
    """Means `[task]` over the real samples of `values` `[task, sample]`; 0 for a task without."""
    return (values * real).sum(-1) / real.sum(-1).clamp_min(1)


def policy(params: Params, seen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions in (-1, 1) and their log-densities. `params`: of the actor. `seen`: `[task, sample,
    input]`. `noise`: standard normal `[task, sample, action]`; zeros for the mode before squashing.
    """
    mean, spread = networks.network(params, "actor", seen, F.relu).chunk(2, -1)
    spread = NARROW + (WIDE - NARROW) * (torch.tanh(spread) + 1) / 2
    raw = mean + spread.exp() * noise
    # log(1 - tanh²) in a form that does not cancel
    squashing = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    return torch.tanh(raw), networks.log_normal(noise, spread) - squashing.sum(-1)


def values(params: Params, seen: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Both critics, `[task, sample]`; actions stand first, since codes stand last."""
    x = torch.cat([actions, seen], -1)
    one, two = (networks.network(params, net, x, F.relu)[..., 0] for net in ("one", "two"))
    return one, two


def goals(agent: Agent, batch: Batch, noise: Tensor, discount: float) -> Tensor:
    """What the critics are drawn to, `[task, sample]`."""
    actions, likelihood = policy(agent.actor.params, batch.after, noise)
    lower = torch.minimum(*values(agent.target, batch.after, actions))
    ahead = lower - agent.temperature.params["log"].exp() * likelihood
    return batch.rewards + discount * (1 - batch.over) * ahead


def critic_losses(params: Params, batch: tuple[Batch, Tensor]) -> Tensor:
    """`[task]`: squared errors of both critics."""
    drawn, wanted = batch
    one, two = values(params, drawn.seen, drawn.actions)
    return mean_of((one - wanted).square() + (two - wanted).square(), drawn.real)


def actor_losses(params: Params, batch: tuple[Batch, Tensor, Params, Tensor]) -> Tensor:
    """`[task]`: temperature times log-density, minus the lower critic."""
    drawn, noise, critic, temperature = batch
    actions, likelihood = policy(params, drawn.seen, noise)
    lower = torch.minimum(*values(critic, drawn.seen, actions))
    return mean_of(temperature * likelihood - lower, drawn.real)


def temperature_losses(params: Params, surplus: Tensor) -> Tensor:
    """`[task]`: the shared temperature times the entropy above what is wanted."""
    return params["log"].exp() * surplus


class Learner:
    """The algorithm as functions of an `Agent`, for one method, rate and shape of the problem."""

    def __init__(
        self,
        name: str,
        rate: float,
        tasks: int,
        seen: int,
        actions: int,
        hidden: tuple[int, ...],
        c: float = 0.9,
    ) -> None:
        probe, rule = probe_and_rule(name, c=c)
        self.name, self.tasks, self.actions = name, tasks, actions
        self.width, self.hidden = seen - tasks, hidden
        self.critic, self.actor, self.temperature = (
            mf.descend(losses, rule, probe, mf.adam(rate))
            for losses in (critic_losses, actor_losses, temperature_losses)
        )

    def start(self, key: Tensor) -> Agent:
        """An agent that has learnt nothing."""

        def net(i: int, name: str, width: int, outputs: int) -> Params:
            widths, own = (width, *self.hidden, outputs), mf.random.fold_in(key, i)
            return networks.start(own, name, widths, self.tasks, self.name, xavier=True)

        actor = net(0, "actor", self.width, 2 * self.actions)
        width = self.width + self.actions
        critic = net(1, "one", width, 1) | net(2, "two", width, 1)
        temperature = {"log": torch.zeros((), device=key.device)}
        seen = torch.zeros(self.tasks, 1, self.width + self.tasks, device=key.device)
        acted, number = seen[..., : self.actions], seen[..., 0]
        batch = Batch(seen, acted, number, seen, number, torch.ones_like(number))
        alone, zeros = mf.random.fold_in(key, 3), number[:, 0]
        return Agent(
            self.actor.init(actor, (batch, acted, critic, zeros[0]), alone),
            self.critic.init(critic, (batch, number), alone),
            critic,
            self.temperature.init(temperature, zeros, alone),
        )

    def update(self, agent: Agent, batch: Batch, key: Tensor, discount: float = 0.99) -> Agent:
        """One step of the critics, the actor, the temperature and the slow copies."""
        noise = mf.random.normal(key, (2, *batch.actions.shape))
        with torch.no_grad():
            wanted = goals(agent, batch, noise[0], discount)
        critic, _ = self.critic.update(agent.critic, (batch, wanted))
        temperature = agent.temperature.params["log"].exp()
        actor, _ = self.actor.update(agent.actor, (batch, noise[1], critic.params, temperature))
        with torch.no_grad():
            _, likelihood = policy(agent.actor.params, batch.seen, noise[1])
            # of -log · (log-density + entropy that is wanted, minus the number of actions)
            surplus = -mean_of(likelihood - self.actions, batch.real)
        warmer, _ = self.temperature.update(agent.temperature, surplus)
        with torch.no_grad():
            target = {
                name: torch.lerp(slow, critic.params[name], SLOW)
                for name, slow in agent.target.items()
            }
        return Agent(actor, critic, target, warmer)


class Replay:
    """The last transitions of every task."""

    def __init__(self, tasks: int, capacity: int, seen: int, actions: int, device: str) -> None:
        shapes = (seen,), (actions,), (), (seen,), (), ()
        empty = [torch.zeros(tasks, capacity, *shape, device=device) for shape in shapes]
        self.leaves = Batch(*empty)
        self.capacity, self.count = capacity, 0

    def add(self, *values: np.ndarray) -> None:
        """One transition a task."""
        at = self.count % self.capacity
        for leaf, value in zip(self.leaves[:-1], values, strict=True):
            leaf[:, at] = torch.as_tensor(np.asarray(value, dtype=np.float32))
        self.leaves.real[:, at] = 1
        self.count += 1

    def draw(self, key: Tensor, size: int) -> Batch:
        """`size` transitions of all tasks together, with replacement, sorted by task. Returns a
        batch `[task, sample, ...]` as wide as the task with most samples; `real` is 0 where the
        others have none.
        """
        tasks = len(self.leaves.seen)
        share = mf.random.uniform(key, (2, size), torch.float64)
        task = (share[0] * tasks).long().sort().values
        counts = torch.bincount(task, minlength=tasks)
        place = torch.arange(size, device=task.device) - (counts.cumsum(0) - counts)[task]
        index = task.new_zeros(tasks, int(counts.max()))
        real = torch.zeros(index.shape, device=task.device)
        index[task, place] = (share[1] * min(self.count, self.capacity)).long()
        real[task, place] = 1
        rows = torch.arange(tasks, device=task.device)[:, None]
        return Batch(*(leaf[rows, index] for leaf in self.leaves))._replace(real=real)


class Rewards:
    """Rewards divided by their running deviation, task by task. m ← m + α(r - m), v ← v + α((r -
    m)² - v), and r/(√v + 1e-8) is learnt from, from m = 0 and v = 1: as `mtenv` does it, on which
    CAGrad's runs rest.
    """

    RATE = 0.001

    def __init__(self, tasks: int) -> None:
        """No reward yet."""
        self.mean, self.variance = np.zeros(tasks), np.ones(tasks)

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """One reward of every task, `[task]`."""
        self.mean = self.mean + self.RATE * (rewards - self.mean)
        apart = (rewards - self.mean) ** 2
        self.variance = self.variance + self.RATE * (apart - self.variance)
        return rewards / (np.sqrt(self.variance) + 1e-8)


def last_seen(after: np.ndarray, ended: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    """Observations after a step, before what ended was begun again."""
    if not ended.any():
        return after
    found = after.copy()
    for task in np.flatnonzero(ended):
        found[task] = info["final_obs"][task]
    return found


def successes(ended: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    """Whether the step was a success, of every task; of one that ended it is in `final_info`."""
    found = np.asarray(info.get("success", np.zeros(len(ended)))) > 0
    if ended.any() and "success" in info.get("final_info", {}):
        found = np.where(ended, np.asarray(info["final_info"]["success"]) > 0, found)
    return found


@torch.no_grad()
def measure(
    act: Callable[[Tensor], Tensor], envs: Environments, episodes: int, device: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of episodes with a success at any step, and mean returns, `[task]`. `act`: from
    observations `[task, 1, input]` to actions. `envs`: for measuring alone. `episodes`: of every
    task. `device`: of torch. `seed`: of the episodes' beginnings.
    """
    seen, _ = envs.reset(seed=seed)
    done, reached = np.zeros(envs.num_envs, int), np.zeros(envs.num_envs)
    returns, now, sums = np.zeros(envs.num_envs), np.zeros(envs.num_envs), np.zeros(envs.num_envs)
    while (done < episodes).any():
        rows = torch.as_tensor(seen, dtype=torch.float32, device=device)[:, None]
        seen, rewards, over, late, info = envs.step(act(rows)[:, 0].cpu().numpy())
        ended = np.asarray(over) | np.asarray(late)
        now = np.maximum(now, successes(ended, info))
        sums += rewards
        counted = ended & (done < episodes)
        reached, returns = reached + now * counted, returns + sums * counted
        done = done + counted
        now, sums = np.where(ended, 0, now), np.where(ended, 0, sums)
    return reached / episodes, returns / episodes


class Run(Resumable):
    """The state of a run; `go` ends it. Environments begin again where one goes on."""

    KEPT = ("agent", "step", "scales", "rewards", "curve", "returns", "spent", "held")

    def __init__(
        self, settings: Settings, cell: Cell, make: Callable[[int], Environments], kept: Path
    ) -> None:
        """Environments are made by `make(seed)`: one to learn in, one to measure, of one seed: the
        goals that are learnt are measured.
        """
        self.settings, self.cell, self.kept = settings, cell, kept
        self.envs, self.apart = make(cell.seed), make(cell.seed)
        tasks = self.envs.num_envs
        seen = self.envs.single_observation_space.shape[0]
        actions = self.envs.single_action_space.shape[0]
        self.key = mf.random.key(cell.seed, settings.device)
        self.learner = Learner(
            cell.method, cell.rate, tasks, seen, actions, settings.hidden, settings.c
        )
        self.agent = self.learner.start(mf.random.fold_in(self.key, 0))
        self.replay = Replay(tasks, settings.capacity, seen, actions, settings.device)
        self.scales = (
            torch.zeros(seen, device=settings.device),
            torch.ones(seen, device=settings.device),
        )
        self.rewards = Rewards(tasks)
        self.step, self.spent = 0, 0.0
        self.kept_at, self.keeping = time.monotonic(), 0.0
        self.curve: list[list[float]] = []
        self.returns: list[list[float]] = []
        self.resume(kept)

    def go(self) -> Numbers:
        """Learn to the end; the state is kept at every measurement, and by time between them."""
        settings, tasks = self.settings, self.envs.num_envs
        seen, _ = self.envs.reset(seed=self.cell.seed + self.step)
        progress = Progress(settings.steps, str(self.cell), "steps", self.step)
        note = ""
        while self.step < settings.steps:
            now = mf.random.fold_in(mf.random.fold_in(self.key, 1), self.step)
            actions = self.act(seen, now)
            after, rewards, over, late, info = self.envs.step(actions)
            last = last_seen(after, np.asarray(over) | np.asarray(late), info)
            rewards = settings.scale * self.rewards(np.asarray(rewards))
            self.replay.add(seen, actions, rewards, last, np.asarray(over))
            seen = after
            if self.step >= settings.random:
                begun = time.process_time()
                if self.step == settings.random and settings.scaled:
                    seen_so_far = self.replay.leaves.seen[:, : self.replay.count].flatten(0, 1)
                    self.scales = networks.scales(seen_so_far, tasks)
                with Refusal() as refusal:
                    self.learn(now)
                    if self.step == settings.random:  # as many at once as steps were random
                        for i in range(1, settings.random):
                            self.learn(mf.random.fold_in(now, 2 + i))
                if refusal.came:
                    nothing = [math.nan] * tasks
                    missing = settings.steps // settings.every - len(self.curve)
                    self.curve += [nothing] * missing
                    self.returns += [nothing] * missing
                    break
                self.spent += time.process_time() - begun
            self.step += 1
            looked = self.step % settings.every == 0
            if looked:
                note = self.look()
            late = time.monotonic() - self.kept_at > max(KEPT_EVERY, 100 * self.keeping)
            if self.step < settings.steps and (looked or late):
                begun = time.monotonic()
                self.keep(self.kept)
                self.kept_at = time.monotonic()
                self.keeping = self.kept_at - begun
            progress.update(note=note)
        progress.close()
        if not self.curve:
            raise ValueError(
                f"steps: {settings.steps} are fewer than the {settings.every} between "
                "two measurements"
            )
        step_ms = 1e3 * self.spent / max(1, self.step - 1)
        found = measured(torch.tensor(self.curve, dtype=torch.float64), step_ms)
        found["return"] = float(np.mean(self.returns[-1]))
        found["returns"] = [sum(each) / tasks for each in self.returns]
        if not all(bool(x.isfinite().all()) for x in self.agent.actor.params.values()):
            return found | dict.fromkeys(("score", "area", "final", "worst", "return"), math.nan)
        return found

    def learn(self, key: Tensor) -> None:
        """One update, from a batch of the replay."""
        settings, own = self.settings, mf.random.fold_in(key, 1)
        drawn = self.replay.draw(own, settings.batch)
        batch = drawn._replace(seen=self.scale(drawn.seen), after=self.scale(drawn.after))
        self.agent = self.learner.update(
            self.agent, batch, mf.random.fold_in(key, 2), settings.discount
        )

    def scale(self, seen: Tensor) -> Tensor:
        """Observations as the networks take them."""
        mean, deviation = self.scales
        return (seen - mean) / deviation

    @torch.no_grad()
    def act(self, seen: np.ndarray, key: Tensor) -> np.ndarray:
        """Random actions first, then the policy's with its noise."""
        device, shape = self.settings.device, (len(seen), 1, self.learner.actions)
        if self.step < self.settings.random:
            return (2 * mf.random.uniform(key, shape) - 1)[:, 0].cpu().numpy()
        rows = self.scale(torch.as_tensor(seen, dtype=torch.float32, device=device)[:, None])
        actions, _ = policy(self.agent.actor.params, rows, mf.random.normal(key, shape))
        return actions[:, 0].cpu().numpy()

    def look(self) -> str:
        """Measure success without noise; what it was, in words."""
        zeros = torch.zeros(
            self.envs.num_envs, 1, self.learner.actions, device=self.settings.device
        )
        success, returns = measure(
            lambda rows: policy(self.agent.actor.params, self.scale(rows), zeros)[0], self.apart,
            self.settings.episodes, self.settings.device, self.cell.seed + self.step,
        )  # fmt: skip
        self.curve.append(success.tolist())
        self.returns.append(returns.tolist())
        return f"success {success.mean():.2f}, return {returns.mean():.0f}"

    @property
    def held(self) -> tuple[int, list[Tensor]]:
        """What the replay holds."""
        count = min(self.replay.count, self.replay.capacity)
        return self.replay.count, [leaf[:, :count].clone() for leaf in self.replay.leaves]

    @held.setter
    def held(self, kept: tuple[int, list[Tensor]]) -> None:
        self.replay.count, filled = kept
        for leaf, part in zip(self.replay.leaves, filled, strict=True):
            leaf[:, : part.shape[1]] = part


def perform(
    make: Callable[[int], Environments], unfinished: Path, settings: Settings, cell: Cell
) -> Numbers:
    """One run. `make`: environments of a seed. `unfinished`: folder of what runs keep on the way.
    `settings`: what all cells share. `cell`: method, rate and seed. Returns what `measured` says of
    successes, with the processor time of one update, `returns` (mean over tasks `[measurement]`)
    and the last `return`. NaN where the parameters stopped being finite.
    """
    return Run(settings, cell, make, state_of(unfinished, cell)).go()
