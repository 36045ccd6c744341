"""Which derivatives torch gets wrong: `python docs/derivatives.py` prints those of this torch, and
`... | python -m docs.derivatives --keep` keeps them and writes the table of docs/limits.md.

It needs torch alone. Each operation is a function of one vector in float64, to weighted squares of
its outputs. Each derivative stands next to central differences of the one before it.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

warnings.simplefilter("ignore")
KEPT = Path(__file__).parent / "record" / "derivatives.json"
"""By version of torch, operation and kind."""
Of = Callable[[Tensor], Tensor]
"""An operation as a function of one vector."""
INDEX = torch.tensor([2, 0, 2])


def square(x: Tensor, size: int = 3) -> Tensor:
    """Well conditioned, of the first entries of x."""
    return x[: size * size].reshape(size, size) + 3 * torch.eye(size, dtype=x.dtype)


def lower(x: Tensor) -> Tensor:
    return square(x) @ torch.eye(3, dtype=x.dtype)


def pair(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:6].reshape(2, 3), x[6:12].reshape(2, 3)


def heads(x: Tensor) -> list[Tensor]:
    return [part.reshape(1, 2, 2) for part in x[:12].split(4)]


OPERATIONS: dict[str, Of] = {
    "layer_norm": lambda x: F.layer_norm(x[:6].reshape(2, 3), (3,), x[6:9], x[9:12]),
    "batch_norm, training": lambda x: F.batch_norm(
        x[:8].reshape(4, 2), None, None, x[8:10], x[10:12], True
    ),
    "instance_norm": lambda x: F.instance_norm(
        x[:8].reshape(1, 2, 4), None, None, x[8:10], x[10:12]
    ),
    "group_norm": lambda x: F.group_norm(x[:8].reshape(1, 4, 2), 2, x[8:12]),
    "weight_norm": lambda x: torch._weight_norm(x[:6].reshape(2, 3), x[6:8].reshape(2, 1), 0),
    "prelu": lambda x: F.prelu(x[:10].reshape(5, 2), x[10:12]),
    "attention": lambda x: F.scaled_dot_product_attention(*heads(x)),
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
    "cumprod": lambda x: torch.cumprod(x, 0),
    "pad_sequence": lambda x: torch.nn.utils.rnn.pad_sequence([x[:3], x[3:12]]),
    "as_strided_scatter": lambda x: torch.as_strided_scatter(x[:8] * 1.0, x[8:12], (4,), (2,)),
    "select_scatter": lambda x: torch.select_scatter(x[:9].reshape(3, 3), x[9:12], 0, 1),
    "index_fill by a tensor": lambda x: torch.index_fill(x[:11], 0, INDEX[:2], x[11]),
    "index_select, no axis": lambda x: torch.index_select(x, 0, INDEX[0]),
    "index_copy, no axis": lambda x: torch.index_copy(x[:11], 0, INDEX[0], x[11]),
    "scatter_reduce, prod": lambda x: torch.scatter_reduce(x[:9], 0, INDEX, x[9:12], "prod"),
    "index_reduce, prod": lambda x: torch.index_reduce(x[:9], 0, INDEX, x[9:12], "prod"),
}
POINT = 0.7 + torch.sin(2.0 * torch.arange(12, dtype=torch.float64))
DEFINED = ("embedding, padding_idx", "embedding, scale_grad_by_freq")
"""Their gradient is not that of the function, on purpose; the others have to fit it."""
KINDS = {
    "gradient": "gradients, one by one", "batched": "gradients, a vmap of backward passes",
    "lanes": "gradients at two points, vmaps of both", "forward": "forward mode",
    "second": "second derivatives, one by one",
    "batched second": "second derivatives, vmaps of backward passes",
    "mixed": "second derivatives, forward over a vmap of backward passes",
    "third": "third derivatives, one by one",
}  # fmt: skip


def differences(f: Of, x: Tensor) -> Tensor:
    """Central ones of fourth order, an entry of x last."""
    step, eye = 1e-3, torch.eye(len(x), dtype=x.dtype)
    near = lambda k: torch.stack([f(x + k * step * row) for row in eye], -1)  # noqa: E731
    return (8 * (near(1) - near(-1)) - (near(2) - near(-2))) / (12 * step)


def one_by_one(f: Of, x: Tensor) -> Tensor:
    """Rows of a derivative, a backward pass each, of which each can be differentiated."""
    y = f(x)
    rows = [torch.autograd.grad(z, x, create_graph=True, allow_unused=True)[0] for z in y.flatten()]
    return torch.stack([torch.zeros_like(x) if r is None else r for r in rows]).reshape(
        *y.shape, -1
    )


def judged(name: str) -> dict[str, str]:
    """By kind whether a derivative is right, wrong or refused; none that hangs on a wrong one."""
    x = POINT.clone().requires_grad_()

    def f(x: Tensor) -> Tensor:
        y = OPERATIONS[name](x).flatten()
        return torch.cos(torch.arange(len(y))) * y.square()

    def rows(x: Tensor) -> Tensor:
        return one_by_one(f, x)

    def along(x: Tensor) -> Tensor:  # second derivatives along three vectors
        second = one_by_one(rows, x)
        return ((second @ POINT.cos() @ POINT.sin()) * torch.arange(len(second)).sin()).sum()[None]

    leaf = lambda g: lambda x: g(x.detach().requires_grad_()).detach()  # noqa: E731
    plain, two = POINT.clone(), torch.stack([POINT, POINT.flip(0)])
    before = dict.fromkeys(("gradient", "batched", "lanes", "forward"), f) | {"third": leaf(along)}
    ways: dict[str, Callable[[], Tensor]] = {
        "gradient": lambda: rows(x), "batched": lambda: jacrev(f)(plain),
        "lanes": lambda: vmap(jacrev(f))(two), "forward": lambda: jacfwd(f)(plain),
        "second": lambda: one_by_one(rows, x), "batched second": lambda: jacrev(jacrev(f))(plain),
        "mixed": lambda: jacfwd(jacrev(f))(plain), "third": lambda: one_by_one(along, x),
    }  # fmt: skip
    found: dict[str, str] = {}
    for kind in KINDS:
        if kind == "third" and found["second"] != "right":
            found[kind] = "–"
            continue
        try:
            answer = ways[kind]().detach()
            wanted = differences(before.get(kind, leaf(rows)), plain).detach()
            if name in DEFINED and before.get(kind) is f:
                wanted = rows(x).detach()
            if kind == "lanes":
                at = leaf(rows) if name in DEFINED else lambda x: differences(f, x)
                wanted = torch.stack([at(point) for point in two])
            found[kind] = "right" if torch.allclose(answer, wanted, 1e-5, 1e-6) else "wrong"
        except (RuntimeError, NotImplementedError):
            found[kind] = "refused"
    return found


def table(versions: dict[str, Any]) -> str:
    """An operation and kind that is wrong or refused in some version a line."""
    lines = [
        f"| operation | derivative | {' | '.join(versions)} |",
        "|---" * (len(versions) + 2) + "|",
    ]
    for name in OPERATIONS:
        for kind, words in KINDS.items():
            cells = [of.get(name, {}).get(kind, "–") for of in versions.values()]
            if "wrong" in cells:
                shown = [f"**{x}**" if x == "wrong" else x for x in cells]
                lines.append(f"| {name} | {words} | {' | '.join(shown)} |")
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
