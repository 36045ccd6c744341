"""The table of an audit: in a terminal, in a notebook, and as records for a data frame."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from torch import Tensor

from ..display import Markup, code, coloured, items, table
from ..testing.integers import literal
from .instances import source

Status = Literal["holds", "fails", "not applicable"]

COLOURS = {"holds": "#1a7f37", "fails": "#cf222e", "not applicable": "#6e7781"}


@dataclass(frozen=True, eq=False)
class Row:
    """One property of one rule."""

    name: str
    status: Status
    instances: int  # that it was tested on
    failures: int
    detail: str = ""  # what was seen at the counterexample, or why the property does not apply
    jacobian: Tensor | None = None  # the counterexample [task, param], without zero columns
    losses: Tensor | None = None  # its losses [update, task], where the rule reads them
    # whether all failures are at linearly dependent gradients, though others were tested, too
    dependent: bool = False
    contract: bool = False  # whether this is about how the rule computes: a failure is a defect

    @property
    def literal(self) -> str:
        """The counterexample as code, for `mtlfunc.aggregate(rule, …)`; empty if there is none.

        Of many tasks it is the call that makes it.
        """
        return "" if self.jacobian is None else source(self.jacobian) or literal(self.jacobian)

    @property
    def verdict(self) -> str:
        if self.status == "not applicable":
            return self.detail
        if self.status == "holds":
            return f"over {self.instances:,} instances"
        return f"at {self.failures:,} of {self.instances:,} instances" + (
            ", all with linearly dependent gradients" if self.dependent else ""
        )


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What `audit` found; a table when printed."""

    rule: str
    rows: tuple[Row, ...]
    updates: int  # how many successive updates every answer was tested at
    not_tried: tuple[str, ...] = ()  # what the table says nothing about

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(
            f"{name!r}: no such property in this report; there are "
            f"{', '.join(row.name for row in self.rows)}"
        )

    @property
    def sound(self) -> bool:
        """Whether nothing was found wrong with how the rule computes."""
        return not any(row.contract and row.status == "fails" for row in self.rows)

    def records(self) -> list[dict[str, Any]]:
        """One dict a property, of plain values: `pandas.DataFrame(report.records())`."""
        return [
            {
                "rule": self.rule,
                "property": row.name,
                "about": "contract" if row.contract else "property",
                "status": row.status,
                "instances": row.instances,
                "failures": row.failures,
                "dependent": row.dependent,
                "counterexample": row.literal,
                "losses": "" if row.losses is None else literal(row.losses),
                "detail": row.detail,
            }
            for row in self.rows
        ]

    @property
    def title(self) -> str:
        count = {status: sum(row.status == status for row in self.rows) for status in COLOURS}
        found = f"{count['holds']} hold, {count['fails']} fail" + (
            f", {count['not applicable']} not applicable" if count["not applicable"] else ""
        )
        return f"Audit of {self.rule}: {found}" + (
            f"; every answer over {self.updates} updates" if self.updates > 1 else ""
        )

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        name, status = (
            max(len(row.name) for row in self.rows),
            max(len(row.status) for row in self.rows),
        )
        lines = [self.title]
        for contract in (False, True):
            rows = [row for row in self.rows if row.contract == contract]
            lines += [""] * bool(rows) + [
                f"{row.name:{name}}  {row.status:{status}}  {row.verdict}".rstrip() for row in rows
            ]
        if self.not_tried:
            lines += ["", f"Not tried: {'; '.join(self.not_tried)}."]
        failing = [row for row in self.rows if row.status == "fails"]
        if failing:
            lines += ["", "Counterexamples, the smallest found; rows are the tasks' gradients:"]
        for row in failing:
            lines += ["", row.name]
            lines += [f"    {row.literal}"] if row.literal else []
            lines += [f"    losses {literal(row.losses)}"] if row.losses is not None else []
            lines += [f"    {row.detail}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def line(row: Row) -> list[str]:
            shown = [code(row.literal)] if row.literal else []
            shown += [code(f"losses {literal(row.losses)}")] if row.losses is not None else []
            shown += [escape(row.detail)] if row.status == "fails" else []
            status = coloured(row.status, COLOURS[row.status])
            return [row.name, status, row.verdict, Markup("<br>".join(shown))]

        lines: list[list[str]] = []
        for contract, head in ((False, "What it does"), (True, "How it computes")):
            rows = [line(row) for row in self.rows if row.contract == contract]
            lines += [[head], *rows] if rows else []
        said = [f"Not tried: {'; '.join(self.not_tried)}."] if self.not_tried else []
        return table(self.title, lines) + items(said)
