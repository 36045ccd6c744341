"""experiments/conflict: the command in small."""

import json

from experiments.conflict import __main__ as command


def test_the_command_writes_a_table_a_figure_and_all_numbers(tmp_path, monkeypatch):
    covered, alarms, tails, measure = (
        getattr(command, name) for name in ("covered", "alarms", "tails", "measure")
    )
    monkeypatch.setattr(command, "covered", lambda setting, _: covered(setting, 4))
    monkeypatch.setattr(command, "alarms", lambda *given: alarms(*given[:2], 2, 4))
    monkeypatch.setattr(command, "tails", lambda *given: tails(*given[:2], 3))
    monkeypatch.setattr(command, "measure", lambda name, *_: measure(name, (0,), 3))
    assert command.main(["--quick", "--out", str(tmp_path)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert {"results.json", "table.md", "conflict.png"} <= written
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert {x["network"] for x in numbers["networks"]} == set(command.NETWORKS)
