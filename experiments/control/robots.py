"""Meta-World: the only file that imports it, and what to install where it is missing."""

import functools
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from common.command import DataError

EXTRA = ("gymnasium", "mujoco", "metaworld", "packaging")
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "two": ("reach-v3", "drawer-close-v3"),
    "MT10": (),
    "MT50": (),
}
"""By name the tasks of a benchmark; empty where Meta-World knows them itself."""

REWARD = "v2"
"""Version of the rewards: numbers under another one are of another problem."""


HORIZON = 500
"""Steps of an episode, where nothing else is wanted."""

INPUTS = 39
"""Numbers of an observation before the task's code."""


def missing() -> list[str]:
    """Packages of the extra `control` that are not there."""
    return [name for name in EXTRA if find_spec(name) is None]


def needed() -> str:
    """What to install, in a sentence."""
    return (
        f"Not installed: {', '.join(missing())}. Meta-World needs the extra `control`: "
        'pip install -e ".[control]"; --parts grids,points run without'
    )


def require() -> None:
    """Raises DataError that says what to install."""
    if missing():
        raise DataError(needed())


class Environments(NamedTuple):
    """Called with a seed, makes one environment a task, side by side; equal by what it makes."""

    benchmark: str
    horizon: int = HORIZON
    reward: str = REWARD
    goals: bool = True  # every episode has another goal; else a task has the seed's for ever

    def __call__(self, seed: int) -> Any:
        """Observations end with the task's one-hot code; the seed, >= 0, is of goals and noise."""
        require()
        gymnasium = import_module("gymnasium")
        import_module("metaworld")  # registers its environments
        # 0 would be taken for no seed
        given: dict[str, Any] = {"seed": seed + 1, "use_one_hot": True}
        given |= {"vector_strategy": "sync", "reward_function_version": self.reward}
        given |= {"max_episode_steps": self.horizon}
        tasks = BENCHMARKS[self.benchmark]
        if tasks:
            given["envs_list"] = list(tasks)
        name = "custom-mt-envs" if tasks else self.benchmark
        made = Seeded(gymnasium.make_vec(f"Meta-World/{name}", **given))
        if not self.goals:
            made.fix_goals(seed)
        return made


class Seeded:
    """Environments that begin alike after `reset(seed=)`, whatever they did before.

    Meta-World's own reset draws the goal before it looks at the seed.
    """

    def __init__(self, envs: Any) -> None:
        self.envs = envs
        self.num_envs = envs.num_envs
        self.single_observation_space = envs.single_observation_space
        self.single_action_space = envs.single_action_space
        self.step = envs.step

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """First observations."""
        if seed is not None:
            self.envs.call("seed", seed)
        return self.envs.reset()

    def fix_goals(self, seed: int) -> None:
        """Draw a goal of every task by the seed, and keep it for all episodes."""
        self.reset(seed=seed)
        self.envs.call("toggle_sample_tasks_on_reset", False)


def names(benchmark: str) -> Sequence[str]:
    """The tasks, in the order of the environments."""
    require()
    made = BENCHMARKS[benchmark]
    return made or list(getattr(import_module("metaworld"), benchmark)(seed=0).train_classes)


class Expert(NamedTuple):
    """The scripted policies of a benchmark's tasks."""

    benchmark: str

    def __call__(self, seen: np.ndarray) -> np.ndarray:
        """Actions `[task, 4]` within [-1, 1], from observations `[task, input]`."""
        found = [
            policy.get_action(row[:INPUTS].astype(np.float64))
            for policy, row in zip(_policies(self.benchmark), seen, strict=True)
        ]
        return np.clip(np.stack(found), -1, 1).astype(np.float32)


@functools.cache
def _policies(benchmark: str) -> list[Any]:
    require()
    policies = import_module("metaworld.policies").ENV_POLICY_MAP
    return [policies[name]() for name in names(benchmark)]
