"""Rules whose properties the papers state; one property of an audit."""

from typing import Any

from mtlfunc.audit import audit


def row_of(rule: Any, name: str, **given: Any) -> Any:
    """What an audit says of one property."""
    return audit(rule, only=[name], **given)[name]


RULES = {
    "mean": "mean()", "mgda": "mgda()", "pcgrad": "pcgrad()", "cagrad": "cagrad(0.4)",
    "cagrad-1": "cagrad(1.0)", "gradnorm": "gradnorm(1.5)", "upgrad": "upgrad()",
    "dualproj": "dualproj()",
}  # fmt: skip
"""Those whose textbook is checked, as the table in docs/properties.md names them."""

TEXTBOOK = {
    "mean": {"non-conflict": "fails", "linear under scaling": "holds",
        "identity without conflict": "holds", "Pareto-stationary fixed points": "fails"},
    "mgda": {"invariance to rescaling one task": "fails", "duplicate tasks": "holds",
        "non-conflict": "holds", "convex weights": "holds",
        "Pareto-stationary fixed points": "holds", "linear under scaling": "fails",
        "continuity": "holds"},
    "pcgrad": {"permutation equivariance": "fails", "non-conflict": "fails",
        "Pareto-stationary fixed points": "fails", "identity without conflict": "holds",
        "linear under scaling": "holds", "convex weights": "fails"},
    "cagrad": {"non-conflict": "fails", "identical tasks": "fails",
        "linear under scaling": "fails", "permutation equivariance": "holds",
        "Pareto-stationary fixed points": "fails"},
    "cagrad-1": {"non-conflict": "holds", "Pareto-stationary fixed points": "holds"},
    "gradnorm": {"non-conflict": "fails", "identical tasks": "holds",
        "invariance to shifting a loss": "fails", "continuity": "fails"},
    "upgrad": {"non-conflict": "holds", "identity without conflict": "holds",
        "linear under scaling": "holds", "Pareto-stationary fixed points": "holds"},
    "dualproj": {"non-conflict": "holds", "identity without conflict": "holds",
        "linear under scaling": "fails", "Pareto-stationary fixed points": "holds"},
}  # fmt: skip
"""What is known of them, property by property."""
