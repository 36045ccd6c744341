"""Every study's command in small: it writes finite numbers, and goes on where it was."""

import json
from importlib import import_module

import matplotlib.pyplot as plt
import pytest

from experiments.auxiliary import data, search, tasks
from experiments.auxiliary import train as auxiliary
from experiments.control import grids
from experiments.multimnist import train as multimnist
from experiments.scenes import report as scenes_report
from experiments.scenes import train as scenes

STUDY = "--quick --workers 1"
COMMANDS = {
    "arena": "--only conflict,vlmop2 --seeds 2 --tuning 1 --budget 0.02 --workers 2",
    "auxiliary": f"{STUDY} --rules cagrad,mean",
    "auxiliary --search": f"{STUDY} --seeds 2",
    "conflict": "--quick",
    "control": f"{STUDY} --parts grids --rules mean,cagrad --seeds 2",
    "grouping": "--quick --steps 2",
    "metric --matrices": "--quick --steps 14 --seeds 2",
    "metric.influence": "--quick --seeds 2",
    "mixing": "--quick --seeds 2 --steps 2 --methods uniform,align,PiKE",
    "multimnist": f"{STUDY} --rules pcgrad,mean",
    "physics": f"{STUDY} --rules Adam,Gauss-Newton --seconds 0.02",
    "published celeba": f"{STUDY} --rules mean",
    "published cifar100": f"{STUDY} --rules mean",
    "published qm9": f"{STUDY} --rules mean",
    "rewards": f"{STUDY} --rules sum,UPGrad",
    "scenes": f"{STUDY} --rules cagrad,mean",
}


def shrink(name: str, command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps than the command can be asked for."""
    change = monkeypatch.setattr
    if name.startswith("auxiliary"):
        short = auxiliary.Settings(None, tasks.CHOSEN, 3, 8, 0, 0, "cpu")
        change(command, "settings_of", lambda *rest: short)
        change(auxiliary, "DIGITS", data.DIGITS._replace(labels=(50, 100)))
        change(command, "RATES", (1e-2,))
        change(search, "SETS", (("noise",), ("crops", "rotation")))
    elif name == "conflict":
        covered, alarms, tails, measure = (
            getattr(command, x) for x in ("covered", "alarms", "tails", "measure")
        )
        change(command, "covered", lambda setting, _: covered(setting, 4))
        change(command, "alarms", lambda *given: alarms(*given[:2], 2, 4))
        change(command, "tails", lambda *given: tails(*given[:2], 3))
        change(command, "measure", lambda name, *_: measure(name, (0,), 3))
    elif name == "control":
        real = grids.perform
        change(grids, "perform", lambda _, cells: real(grids.Settings(12, "cpu"), cells))
    elif name == "multimnist":
        short = multimnist.Settings(None, 1, 1024, False, "cpu")
        change(command, "settings_of", lambda *rest: short)
        names = (multimnist.BASE, "twice as wide")
        change(command, "SETTINGS", {x: multimnist.SETTINGS[x] for x in names})
        change(command, "RATES", (6e-3,))
    elif name == "scenes":
        for module in (scenes, scenes_report):
            change(module, "ROOMS", scenes.ROOMS._replace(counts=(16, 8)))
        change(scenes, "VALIDATION", 8)
        scenes.data_of.cache_clear()
        short = scenes.Settings(None, 1, 8, 0, 1, True, "cpu")
        change(command, "settings_of", lambda *rest: short)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_finite_numbers_and_goes_on(name, tmp_path, monkeypatch):
    module, *first = name.split()
    inside = "" if "." in module else ".__main__"
    command = import_module(f"experiments.{module}{inside}")
    shrink(name, command, monkeypatch)
    call = [*first, *COMMANDS[name].split(), "--out", str(tmp_path)]
    assert command.main(call) == 0
    (results,) = tmp_path.rglob("results.json")
    json.loads(results.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    table = results.with_name("table.md").read_text(encoding="utf-8")
    assert table.count("\n|") > 1
    assert ": ." not in table  # a sentence whose list is empty
    if name != "conflict":  # where no sign is the wrong one for a cosine of 0
        assert "nan" not in table.split()
    for picture in results.parent.glob("*.png"):
        assert plt.imread(picture).std() > 0
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/**/*.json")}
    if kept:
        assert command.main(call) == 0
        assert results.with_name("table.md").read_text(encoding="utf-8") == table
        assert kept == {path: path.stat().st_mtime_ns for path in kept}
