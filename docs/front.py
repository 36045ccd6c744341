"""The front page's table: what a step costs, as the page of benchmarks has it."""

from pathlib import Path

from docs.blocks import day_in, marked, paragraph, part, row_of

PAGE = Path(__file__).parent / "benchmarks.md"
TASKS = ("2", "3", "40")
NAMES = {"shortest loop": "shortest loop", "TorchJD": "TorchJD", "mf.Balancer": "mtlfunc"}
"""Columns of the page, and of the table."""


def block() -> str:
    """The table between its markers."""
    page = PAGE.read_text(encoding="utf-8")
    steps, memory = part(page, "steps"), part(page, "memory")
    lines = [
        f"| a step of ResNet-18 | mean loss | {' | '.join(NAMES.values())} |",
        "|---|---|---|---|---|",
    ]
    for tasks in TASKS:
        row = row_of(steps, f"ResNet-18, {tasks} tasks, batch 8")
        plain = float(row["mean-loss step, ms"])
        cells = [f"{plain * x:,.0f}" for x in (1.0, *(float(row[name]) for name in NAMES))]
        lines.append(f"| {tasks} tasks, milliseconds | {' | '.join(cells)} |")
    for tasks in TASKS:
        row = row_of(memory, f"{tasks} tasks, 8 images")
        cells = [row[name] for name in ("plain", *NAMES)]
        lines.append(f"| {tasks} tasks, MiB | {' | '.join(cells)} |")
    small = row_of(steps, "MLP 16-64-64, 3 tasks, batch 64")
    *_, (device, ratio) = row_of(part(page, "versions"), "step, ResNet-18, 2 tasks").items()
    said = f"""The rule is MGDA on the trunk, for 8 images, on a CPU core ({day_in(steps)}).
        Milliseconds are processor time, MiB what a step holds besides parameters. The shortest
        loop calls `backward()` once per task. Small networks pay more: with 3 tasks an MLP's step
        takes {float(small["mf.Balancer"]):.1f} mean-loss steps, the shortest loop
        {float(small["shortest loop"]):.1f}. [On an {device.split(", ")[-1]}](docs/benchmarks.md)
        ResNet-18's with 2 tasks takes {ratio} shortest loops."""
    return marked("numbers", "\n".join(lines), paragraph(said))
