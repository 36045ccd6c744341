"""Which derivatives torch gets wrong: `python docs/derivatives.py` prints those of this torch, and
`... | python -m docs.derivatives --keep` keeps them and writes the table of docs/limits.md.

It needs torch alone; the table's last column is of mtlfunc. Each operation is a function of one
vector in float64, to weighted squares of its outputs. Each derivative stands next to central
differences of the one before it, along three directions.
"""

import json
import sys
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

KEPT = Path(__file__).parent / "record" / "derivatives.json"
"""By version of torch, operation and kind."""
Of = Callable[[Tensor], Tensor]
"""An operation as a function of one vector."""
POINT = 0.7 + torch.sin(2.0 * torch.arange(12, dtype=torch.float64))
INDEX = torch.tensor([2, 0, 2])


def square(x: Tensor, size: int = 3) -> Tensor:
    """Well conditioned, of the first entries of x."""
    return x[: size * size].reshape(size, size) + 3 * torch.eye(size, dtype=x.dtype)


def lower(x: Tensor) -> Tensor:
    return square(x) @ torch.eye(3, dtype=x.dtype)


def pair(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:6].reshape(2, 3), x[6:12].reshape(2, 3)


def heads(x: Tensor) -> list[Tensor]:
    return [part.reshape(1, 1, 2, 2) for part in x[:12].split(4)]


OPERATIONS: dict[str, Of] = {
    "layer_norm": lambda x: F.layer_norm(x[:6].reshape(2, 3), (3,), x[6:9], x[9:12]),
    "batch_norm, training": lambda x: F.batch_norm(
        x[:8].reshape(4, 2), None, None, x[8:10], x[10:12], True
    ),
    "instance_norm": lambda x: F.instance_norm(
        x[:8].reshape(1, 2, 4), None, None, x[8:10], x[10:12]
    ),
    "_weight_norm": lambda x: torch._weight_norm(x[:6].reshape(2, 3), x[6:8].reshape(2, 1), 0),
    "prelu": lambda x: F.prelu(x[:10].reshape(5, 2), x[10:12]),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(*heads(x)),
    "cdist": lambda x: torch.cdist(*pair(x)),
    "pdist": lambda x: torch.pdist(x.reshape(4, 3)),
    "embedding, padding_idx": lambda x: F.embedding(INDEX, x.reshape(3, 4), 0),
    "embedding, scale_grad_by_freq": lambda x: F.embedding(
        INDEX, x.reshape(3, 4), scale_grad_by_freq=True
    ),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(lower(x)),
    "cholesky_solve": lambda x: torch.cholesky_solve(x[9:12, None], lower(x)),
    "linalg.solve, broadcast": lambda x: torch.linalg.solve(square(x), x[6:12].reshape(2, 3, 1)),
    "linalg.lu_solve": lambda x: torch.linalg.lu_solve(
        *torch.linalg.lu_factor(square(x)), x[9:12, None]
    ),
    "linalg.tensorsolve": lambda x: torch.linalg.tensorsolve(square(x), x[9:12]),
    "linalg.det": lambda x: torch.linalg.det(square(x)),
    "linalg.slogdet": lambda x: torch.linalg.slogdet(square(x))[1],
    "linalg.householder_product": lambda x: torch.linalg.householder_product(
        x[:6].reshape(3, 2), x[6:8]
    ),
    "logcumsumexp": lambda x: torch.logcumsumexp(x, 0),
    "pad_sequence": lambda x: torch.nn.utils.rnn.pad_sequence([x[:3], x[3:12]]),
    "as_strided_scatter": lambda x: torch.as_strided_scatter(x[:8] * 1.0, x[8:12], (4,), (2,)),
    "select_scatter": lambda x: torch.select_scatter(x[:9].reshape(3, 3), x[9:12], 0, 1),
    "index_fill by a tensor": lambda x: torch.index_fill(POINT, 0, INDEX[:2], x[11]),
    "index_select, no axis": lambda x: torch.index_select(x, 0, INDEX[0]),
    "index_copy, no axis": lambda x: torch.index_copy(x[:11], 0, INDEX[0], x[11]),
    "scatter_reduce, prod": lambda x: torch.scatter_reduce(x[:9], 0, INDEX, x[9:12], "prod"),
    "index_reduce, prod": lambda x: torch.index_reduce(x[:9], 0, INDEX, x[9:12], "prod"),
}
ALONG = torch.cos(1.3 * torch.arange(36, dtype=torch.float64)).reshape(12, 3)
DEFINED = ("embedding, padding_idx", "embedding, scale_grad_by_freq")
"""Their gradient is not that of the function, on purpose; the others have to fit it."""


def differences(f: Of, x: Tensor) -> Tensor:
    """Central ones of fourth order, a direction last."""
    near = lambda k: torch.stack([f(x + 1e-3 * k * each) for each in ALONG.mT], -1)  # noqa: E731
    return ((8 * (near(1) - near(-1)) - (near(2) - near(-2))) / 12e-3).detach()


def one_by_one(f: Of, x: Tensor) -> Tensor:
    """Rows of a derivative, a backward pass each, of which each can be differentiated."""
    y = f(x)
    rows = [torch.autograd.grad(z, x, create_graph=True, allow_unused=True)[0] for z in y.flatten()]
    return torch.stack([torch.zeros_like(x) if r is None else r for r in rows]).reshape(
        *y.shape, -1
    )


def verdict(answer: Callable[[], Tensor], wanted: Callable[[], Tensor]) -> str:
    """Whether a derivative is right, wrong or refused."""
    try:
        with warnings.catch_warnings(action="ignore"):
            near = torch.allclose(answer() @ ALONG, wanted(), 1e-5, 1e-6)
        return "right" if near else "wrong"
    except (RuntimeError, NotImplementedError):
        return "refused"


def judged(name: str, kinds: Collection[str] = ()) -> dict[str, str]:
    """Verdicts on an operation's derivatives, by default of every kind."""
    plain, x = POINT.clone(), POINT.clone().requires_grad_()
    a, b = plain.cos(), plain.sin()

    def f(x: Tensor) -> Tensor:
        y = OPERATIONS[name](x).flatten()
        return torch.cos(torch.arange(len(y))) * y.square()

    def many() -> Tensor:
        return torch.stack([plain.roll(i) for i in range(len(f(plain)))])

    def first(at: Tensor = plain, f: Of = f) -> Tensor:
        defined = name in DEFINED
        return one_by_one(f, at.clone().requires_grad_()) @ ALONG if defined else differences(f, at)

    pair: Of = lambda x: torch.stack([x, x.flip(0)])  # noqa: E731
    rows: Of = lambda x: one_by_one(f, x)  # noqa: E731
    along: Of = lambda x: one_by_one(lambda x: rows(x) @ a, x) @ b  # noqa: E731
    batched: Of = lambda x: jacrev(lambda x: jacrev(f)(x) @ a)(x) @ b  # noqa: E731
    leaf = lambda g: lambda x: g(x.detach().requires_grad_())  # noqa: E731
    second = lambda: differences(leaf(rows), plain)  # noqa: E731
    ways: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "gradients": (lambda: rows(x), first),
        "batched gradients": (lambda: jacrev(f)(plain), first),
        "batched gradients at several points": (
            lambda: vmap(jacrev(f))(many()), lambda: torch.stack([*map(first, many())])
        ),
        "gradients of a vmap": (
            lambda: one_by_one(lambda x: vmap(f)(pair(x)), x),
            lambda: first(f=lambda x: torch.stack([*map(f, pair(x))])),
        ),
        "forward mode": (lambda: jacfwd(f)(plain), first),
        "second derivatives": (lambda: one_by_one(rows, x), second),
        "batched second derivatives": (lambda: jacrev(jacrev(f))(plain), second),
        "forward over backward": (lambda: jacfwd(jacrev(f))(plain), second),
        "forward over forward": (lambda: jacfwd(jacfwd(f))(plain), second),
        "third derivatives": (
            lambda: one_by_one(along, x), lambda: differences(leaf(along), plain)
        ),
        "batched third derivatives": (
            lambda: jacrev(batched)(plain), lambda: differences(batched, plain)
        ),
    }  # fmt: skip
    found: dict[str, str] = {}
    for kind in kinds or ways:  # what is built on a derivative that is not right is no better
        below = found.get(kind.replace("third", "second"), "right")
        found[kind] = verdict(*ways[kind]) if below == "right" else below
    return found


def inside(name: str, kinds: Collection[str]) -> str:
    """What mtlfunc makes of an operation's wrong derivatives."""
    from mtlfunc.gradients.safe_ops import SafeOps

    with SafeOps():
        found = {*judged(name, kinds).values()}
    return "**wrong**" if "wrong" in found else "refused" if "refused" in found else "written out"


def table(versions: dict[str, Any]) -> str:
    """An operation with its derivatives that are wrong in the same versions a line."""
    heads = ["operation", "derivatives", *versions, "in mtlfunc"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in OPERATIONS:
        alike: dict[tuple[str, ...], list[str]] = {}
        for kind in next(iter(versions.values()))[name]:
            alike.setdefault(tuple(of[name][kind] for of in versions.values()), []).append(kind)
        for cells, kinds in alike.items():
            if "wrong" in cells:
                shown = [f"**{x}**" if x == "wrong" else x for x in cells]
                lines.append(
                    f"| {' | '.join([name, ', '.join(kinds), *shown, inside(name, kinds)])} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    if "--keep" in sys.argv:
        from docs.blocks import marked, replaced

        known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        known |= json.load(sys.stdin)
        known = {x: known[x] for x in sorted(known, key=lambda x: [*map(int, x.split("."))])}
        KEPT.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
        page = Path(__file__).parent / "limits.md"
        block = marked("derivatives", table(known))
        page.write_text(replaced(page.read_text(), "derivatives", block))
    else:
        every = {name: judged(name) for name in OPERATIONS}
        print(json.dumps({torch.__version__.partition("+")[0]: every}))
