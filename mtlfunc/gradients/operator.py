"""The Jacobian of the tasks' losses as a linear map: G = A·J P Jᵀ·Aᵀ, one method a factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.checks import check_autocast, check_count, check_dtype, check_option, check_params
from ..core.tree import combine, dot, gramians, like, real_of, same_shapes, select, trained
from ..types import Batch, LossesFn, Metric, Params, Rows, Select
from .explain import Explanation, explanation
from .layerwise.plan import Engine
from .linearize import Linearization, Request, linearize
from .losses import Losses, expect_weightings, parse_alone, parse_losses, parse_weightings
from .run import NO_GRAPH, Forward, Traced, check_connected, live, run


def check_engine(engine: str) -> None:
    check_option(engine, "engine", get_args(Engine))


class Measured(NamedTuple):
    """What one call of `TaskJacobian.measure` found, in the same backward passes."""

    gramian: Float[Tensor, "row row"] | None  # where it was asked for
    rows: Rows | None  # {name: [row, *shape]}, where they were asked for
    combine: Callable[[Tensor], Params]  # weights [row] -> {name: [*shape]}, Jᵀ w


@dataclass(frozen=True, eq=False, repr=False)
class TaskJacobian:
    """J [row, parameter] at one point; made by `mtlfunc.task_jacobian`.

    Nothing is differentiated before a method asks. What is asked for in one call of `measure` comes
    of the same backward passes.
    """

    forward: Forward | Traced
    request: Request  # which leaves are columns, C, and the weightings
    leaves: Params  # the columns and all others, complex where they are

    @property
    def losses(self) -> Float[Tensor, " row"]:
        """The losses whose gradients are the rows: the tasks', or mixtures C L of them."""
        matrix, value = self._matrix, self.forward.value
        return value if matrix is None else matrix @ value

    @property
    def names(self) -> tuple[Any, ...]:
        """The tasks' names, from a dict of losses; else their numbers."""
        given = self.forward.losses.names if self.request.mix is None else None
        return given or tuple(range(len(self)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the parameters that J is taken over."""
        return self.request.shared

    @property
    def _matrix(self) -> Tensor | None:
        return self.request.cotangents(self.forward.value)[0]

    def __len__(self) -> int:
        return len(self.losses)

    def __repr__(self) -> str:
        columns = sum(self.leaves[name].numel() for name in self.columns)
        return f"TaskJacobian [{len(self)} rows, {columns} parameters]"

    def measure(
        self, *, gramian: bool = False, rows: bool = False, dtype: torch.dtype | None = None
    ) -> Measured:
        """Gramian, rows and combination in the same passes.

        Args:
            gramian: J Jᵀ is wanted.
            rows: the rows are wanted; else they are made where that is cheapest.
            dtype: of the Gramian's accumulation; None is the rows' own, at least float32.

        Returns:
            what was asked for, and `combine(weights)`, which is Jᵀ w from the same passes.

        Raises:
            RuntimeError: under autocast, which would round the products.
            ValueError: for losses [sample, part] without `weighted`.
        """
        check_dtype(dtype)
        found = self._linear(gramian=gramian and not rows, combined=True, gramian_dtype=dtype)
        product = found.gramian
        if gramian and product is None:
            product = dot(found.rows, found.rows, self.columns, dtype)
            product = 0.5 * (product + product.mT)

        def combined(weights: Tensor) -> Params:
            grads = combine(weights, found.rows)
            left = tuple(name for name in self.columns if name not in grads)
            grads |= found.pullback(weights, left) if left else {}
            return like(self.leaves, {name: grads[name] for name in self.columns})

        return Measured(product, like(self.leaves, found.rows) if rows else None, combined)

    def gramian(
        self, *, metric: Metric | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "row row"]:
        """G = J Jᵀ by the cheapest way, or J P Jᵀ.

        Args:
            metric: with the diagonal P, `{name: [*shape]}`, as its `scale`; rows are made then.
            dtype: as in `measure`.
        """
        check_dtype(dtype)
        if metric is not None:
            rows = self._linear().rows
            return gramians(rows, rows, metric)[0]
        found = self._linear(gramian=True, gramian_dtype=dtype).gramian
        assert found is not None
        return found

    def rows(self) -> Rows:
        """`{name: [row, *shape]}`: every row as it would be in `.grad`."""
        return like(self.leaves, self._linear().rows)

    def pull(self, weights: Float[Tensor, " row"]) -> Params:
        """Jᵀ w, the gradient of Σ w L, `{name: [*shape]}`; also written `w @ J`. One pass."""
        if weights.shape != self.losses.shape:
            raise ValueError(
                f"weights: expected one for each of {len(self)} rows, got {list(weights.shape)}"
            )
        nothing = self.over(()).request
        return like(self.leaves, self._linear(nothing).pullback(weights, self.columns))

    def push(self, step: Params) -> Float[Tensor, " row"]:
        """J s `[row]`: how fast each loss changes along a step `{name: [*shape]}`; also
        written `J @ step`. It makes the rows.
        """
        columns = {name: self.leaves[name] for name in self.columns}
        if not same_shapes(step, columns):
            given = list(step) if isinstance(step, Mapping) else type(step).__name__
            raise ValueError(
                f"step: expected {{name: tensor}} in the shapes of J's {len(columns)} columns "
                f"(J.columns), got {given}; J.over(...) has other columns"
            )
        along = {name: leaf[None] for name, leaf in real_of(dict(step)).items()}
        return dot(self._linear().rows, along, self.columns)[:, 0].to(self.losses)

    def over(self, shared: Select) -> TaskJacobian:
        """The same losses over other parameters: a glob, a predicate, a module, or several."""
        names = select(self.leaves, shared) if shared != () else ()
        return replace(self, request=self.request._replace(shared=names))

    def weighted(self, weightings: Tensor) -> TaskJacobian:
        """A J for losses of samples, ℓ `[sample]` or `[sample, part]`: row k is the gradient of
        Σ_n A_kn ℓ_n.

        Args:
            weightings: A `[row, sample]` or `[row, sample, part]`. All rows cost one backward pass
                (one a part), where that is cheaper than one each.
        """
        forward = self.forward
        if self.request.mix is not None or forward.losses.scalars is not None:
            raise ValueError(
                "weightings: they make tasks of one tensor of losses, [sample] or [sample, part], "
                "which is not mixed yet; of tasks use C @ J"
            )
        if isinstance(forward, Forward):
            forward = replace(forward, edges=None)
        request = self.request.with_weightings(expect_weightings(weightings), forward)
        return replace(self, forward=forward, request=request)

    def explain(self) -> Explanation:
        """How `gramian()` is made, layer by layer: a table when printed."""
        if isinstance(self.forward, Traced):
            raise RuntimeError("explain: a compiled function is not explained; call it outside")
        return explanation(self.forward, self.request._replace(gramian=True), samples=False)

    def __getitem__(self, which: Any) -> TaskJacobian:
        """Some of the rows: a slice, or a list of their numbers."""
        eye = torch.eye(len(self), dtype=self.losses.dtype, device=self.losses.device)
        return self._mixed(eye[[which] if isinstance(which, int) else which])

    def __matmul__(self, step: Params) -> Float[Tensor, " row"]:
        """`J.push(step)`."""
        return self.push(step)

    def __rmatmul__(self, left: Tensor) -> Any:
        """`w @ J`, a gradient, for w `[row]`; `C @ J`, a TaskJacobian, for C `[mixture, row]`."""
        return self.pull(left) if left.ndim == 1 else self._mixed(left)

    __array_ufunc__ = None

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What lets `w @ J` reach `__rmatmul__`."""
        if getattr(function, "__name__", "") in ("matmul", "__matmul__") and len(args) == 2:
            left, right = args
            if isinstance(right, cls) and isinstance(left, Tensor):
                return right.__rmatmul__(left)
        return NotImplemented

    def _mixed(self, matrix: Tensor) -> TaskJacobian:
        """C J, of rows that may be mixtures already."""
        if matrix.ndim != 2 or matrix.shape[1] != len(self):
            raise ValueError(
                f"C: expected [mixture, {len(self)}], a column for every row of J, got "
                f"{list(matrix.shape)}"
            )
        inner, matrix = self._matrix, matrix.to(self.losses)
        whole = matrix if inner is None else matrix @ inner
        preference = whole.new_full((len(whole),), 1 / len(whole))
        count = len(whole) if self.request.weightings else 0
        mixed = self.request._replace(mix=lambda count: (whole, preference), weightings=count)
        return replace(self, request=mixed)

    def _linear(self, request: Request | None = None, **wanted: Any) -> Linearization:
        """The passes that `wanted` takes; with every refusal."""
        check_autocast(self.leaves, "methods of a TaskJacobian")
        request = self.request if request is None else request
        shape = self.forward.losses.shape
        if shape is not None and not request.weightings:
            raise ValueError(
                f"losses_fn: losses [sample, part] of shape {list(shape)} are no tasks; call "
                "J.weighted(A), or reduce them over the samples"
            )
        return linearize(self.forward, request._replace(**wanted))


@overload
def task_jacobian(
    losses: LossesFn, at: Params, batch: Batch, *, shared: Select = "*", engine: Engine = "auto",
    chunk_size: int | None = None,
) -> TaskJacobian: ...  # fmt: skip
@overload
def task_jacobian(
    losses: Any, at: nn.Module, *, shared: Select = "*", chunk_size: int | None = None
) -> TaskJacobian: ...
def task_jacobian(
    losses: Any, at: Any, batch: Batch = (), *, shared: Select = "*", engine: Engine = "auto",
    chunk_size: int | None = None,
) -> TaskJacobian:  # fmt: skip
    """The Jacobian of the tasks' losses at one point, as an object.

    Args:
        losses: `(params, batch) -> losses`, a vector `[task]`, a tuple or dict of T scalars, or
            losses of samples for `weighted`; or losses that exist, with their graph.
        at: `{name: tensor}`, where to differentiate; or the module that made the losses.
        batch: handed to `losses`.
        shared: which parameters are columns, as in `task_gramian`.
        engine: as in `task_gramian`.
        chunk_size: as in `task_gramian`.

    Returns:
        J with `J.losses`, `J.gramian()`, `J.rows()`, `w @ J` (Jᵀ w), `J @ step`, `C @ J`,
        `J[[0, 2]]`, `J.weighted(A)`, `J.over("heads.*")`, `J.measure(...)` and `J.explain()`. It
        holds the graph of the losses until it is dropped. Of losses that exist hooks cannot be
        seen, so every pass is an ordinary one, and nothing is recorded to be differentiated again.

    Raises:
        TypeError: for losses or parameters that are not floating tensors.
        ValueError: if `shared` matches nothing; for losses of another shape, or that do not depend
            on the parameters.
        RuntimeError: under autocast (open it inside `losses`).

    Examples:
        >>> import mtlfunc as mf
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> J = mf.task_jacobian(lambda p, x: x @ p["w"], {"w": torch.ones(2)}, x)
        >>> J.gramian().tolist(), (torch.tensor([0.5, 0.5]) @ J)["w"].tolist()
        ([[1.0, 1.0], [1.0, 2.0]], [1.0, 0.5])
        >>> (J @ {"w": torch.tensor([0.0, 3.0])}).tolist()
        [0.0, 3.0]
    """
    check_engine(engine)
    check_count(chunk_size, "chunk_size", none=True)
    if isinstance(at, nn.Module):
        leaves = trained(at)
        check_params(leaves, mixed=True)
        names = select(leaves, shared)
        several = losses if isinstance(losses, Tensor | Mapping) else list(losses)
        forward = live(_parsed(several, "losses"), leaves, hooked=True)
        if not forward.graph.leaf_nodes:
            raise ValueError(NO_GRAPH)
    else:
        check_params(at)
        leaves, names = at, select(at, shared)
        forward = run(losses, at, batch, parse=_parsed)
        check_connected(forward)
    request = Request(names, engine=engine, chunk_size=chunk_size)
    return TaskJacobian(forward, request, leaves)


def _parsed(out: Any, what: str = "losses_fn") -> Losses:
    """Losses of tasks, or of samples with parts."""
    if isinstance(out, Tensor) and out.ndim == 2:
        return parse_weightings(out, what)
    return parse_alone(out) if what == "losses_fn" else parse_losses(out, what)
