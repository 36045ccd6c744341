"""The table of an audit: in a terminal, in a notebook, and as records for a data frame."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..testing.integers import literal
from ..testing.report import Printed
from .instances import source

Status = Literal["holds", "fails", "not applicable"]


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

        Of many tasks it is a call, after `from mtlfunc.audit.instances import generic`.
        """
        return "" if self.jacobian is None else source(self.jacobian) or literal(self.jacobian)

    @property
    def verdict(self) -> str:
        if self.status == "not applicable":
            return self.detail
        if self.status == "holds":
            return f"over {self.instances:,} instances"
        more = ", all with linearly dependent gradients" if self.dependent else ""
        return f"at {self.failures:,} of {self.instances:,} instances{more}"


@dataclass(frozen=True, eq=False, repr=False)
class Report(Printed):
    """What `audit` found; a table when printed."""

    rule: str
    rows: tuple[Row, ...]
    updates: int  # how many successive updates every answer was tested at
    not_tried: tuple[str, ...] = ()  # what the table says nothing about

    def __getitem__(self, name: str) -> Row:
        rows = {row.name: row for row in self.rows}
        if name not in rows:
            known = ", ".join(rows)
            raise KeyError(f"{name!r}: no such property in this report; there are {known}")
        return rows[name]

    @property
    def defects(self) -> int:
        """How many contracts it breaks: what is wrong with how the rule computes."""
        return sum(row.contract and row.status == "fails" for row in self.rows)

    @property
    def sound(self) -> bool:
        return not self.defects

    def records(self) -> list[dict[str, Any]]:
        """One dict a property, of plain values: `pandas.DataFrame(report.records())`."""
        fields = ("status", "instances", "failures", "dependent")
        return [
            {"rule": self.rule, "property": row.name}
            | {"about": "contract" if row.contract else "property"}
            | {name: getattr(row, name) for name in fields}
            | {"counterexample": row.literal}
            | {"losses": "" if row.losses is None else literal(row.losses), "detail": row.detail}
            for row in self.rows
        ]

    @property
    def title(self) -> str:
        found = f"{self.defects} defect{'s' * (self.defects != 1)}"
        found = found if any(row.contract for row in self.rows) else "defects not tried"
        over = f"; every answer over {self.updates} updates" if self.updates > 1 else ""
        return f"Audit of {self.rule}: {found}{over}"

    def _lines(self) -> list[list[str]]:
        lines: list[list[str]] = []
        for contract, head in ((False, "what the rule does"), (True, f"defects ({self.defects})")):
            rows = [[x.name, x.status, x.verdict] for x in self.rows if x.contract == contract]
            lines += [[head], *rows] if rows else []
        return lines

    def _remarks(self) -> list[str]:
        failing = [row.literal for row in self.rows if row.status == "fails"]
        said = "Counterexamples, the smallest found; rows are the tasks' gradients, counted from 0:"
        tried = [f"Not tried: {'; '.join(self.not_tried)}."] if self.not_tried else []
        tried += ["generic: of mtlfunc.audit.instances."] if "generic" in "".join(failing) else []
        return [*tried, *([said] if failing else [])]

    def _examples(self) -> dict[str, list[str]]:
        found = {}
        for row in (x for x in self.rows if x.status == "fails"):
            losses = [] if row.losses is None else [f"losses {literal(row.losses)}"]
            found[row.name] = [x for x in (row.literal, *losses, row.detail) if x]
        return found
