"""The tables of memory."""

from experiments.benchmarks import memory


def test_functions_hold_one_graph_and_a_row_for_each():
    one, rows, functions, together = memory.of_functions(3, batch=2, image=16).values()
    assert functions <= 1.1 * (one + rows) < together + rows


def test_the_command_keeps_its_rows(tmp_path, capsys):
    for _ in range(2):
        memory.main(["--cases", "steps-2", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    names, line = (said.splitlines()[i] for i in (-4, -2))
    found = dict(zip(names.split("|")[2:-1], line.split("|")[2:-1], strict=True))
    ours, plain = (float(found[f" {name} "]) for name in ("mf.Balancer", "plain"))
    assert plain < ours
