"""The table of memory on the page of tasks with loaders of their own."""

from experiments.benchmarks import in_turn


def test_functions_hold_one_graph_and_a_row_for_each(capsys):
    in_turn.main((3,), batch=2, image=16)
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()[2:]]
    found = {name.strip(): float(value) for name, value in rows}
    one, rows_of_all, functions, together = found.values()
    assert functions <= 1.1 * (one + rows_of_all) < together + rows_of_all
