"""Meta-World: the only file that imports it, and what to install where it is missing."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from common.command import DataError

EXTRA = ("gymnasium", "mujoco", "metaworld", "packaging")
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "two": ("reach-v3", "drawer-close-v3"), "MT10": (), "MT50": (),
}  # fmt: skip
"""By name the tasks of a benchmark; empty where Meta-World knows them itself."""


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
    horizon: int
    reward: str  # the version: numbers under another one are of another problem

    def __call__(self, seed: int) -> Any:
        """Observations end with the task's one-hot code; the seed, >= 0, is of goals and noise. A
        task has one goal in all episodes.
        """
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
        made.fix_goals(seed)
        return made


class Seeded:
    """Environments that begin alike after `reset(seed=)`, whatever they did before. Meta-World's
    own reset draws the goal before it looks at the seed.
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
