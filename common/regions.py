"""Many steps of many lanes as one compiled program, in the time that one step takes to compile."""

import gc
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from mtlfunc.types import TrainState

from .device import replayed

OPTIONS = {
    # Operations that the code generator copies to every user of a result rather than keep it. At
    # its own 50 the formulas of two tasks grow so much that CAGrad's step takes twice as long to
    # compile; at 8 there are more loops, and it is slower by a third.
    "realize_opcount_threshold": 16,
    # Vector instructions that the processor has are not tried out first, one program for each:
    # whatever compiles torch's headers knows them.
    "cpp.vec_isa_ok": True,
}
"""Of the code generator, inductor."""


Program = Callable[..., tuple[TrainState, Tensor]]
"""`(*lanes, state) -> (state, values [lane, step, ...])`: steps of all lanes, and a parameter."""


def plain_steps(step: Callable[..., TrainState], unroll: int, leaf: str) -> Program:
    """`compile_steps` without a compiler."""

    def several(*arguments: Any) -> tuple[TrainState, Tensor]:
        *lanes, state = arguments
        values = []
        for _ in range(unroll):
            state = step(*lanes, state)
            values.append(state.params[leaf])
        return state, torch.stack(values, 1)

    return several


def replayed_steps(step: Callable[..., TrainState], unroll: int, leaf: str) -> Program:
    """`plain_steps` as one graph of a device."""
    several = plain_steps(step, unroll, leaf)
    move = replayed(lambda state, *lanes: several(*lanes, state))
    return lambda *arguments: move(arguments[-1], *arguments[:-1])


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for cycles.

    A compiler makes millions of objects that stay until it is done. To search them again and again
    takes a tenth of its time or more.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@uncollected()
def compile_steps(
    step: Callable[..., TrainState],
    unroll: int,
    lanes: Sequence[Tensor],
    state: TrainState,
    leaf: str,
    backend: Any = "inductor",
) -> Program:
    """`unroll` steps of all lanes, compiled for such lanes and such a state.

    The step is traced once, to plain operations, and they are a region that the program calls
    `unroll` times: code is generated for one step, however many are unrolled. (The step itself
    cannot be the region: torch traces none that enters a mode, and ours watches the losses.)

    Args:
        step: `(*lanes, state) -> state`, all lanes at once.
        unroll: steps a call.
        lanes: what does not change from step to step.
        state: an example.
        leaf: the parameter of which every value is given.
        backend: of torch.compile.

    Returns:
        the program, warm.
    """
    form, count = tree_structure(state), len(lanes)

    # Arguments and answers are flat: a region that is handed or returns nests is traced at every
    # call. And it hands no input through.
    def on_leaves(*arguments: Tensor) -> tuple[Tensor, ...]:
        after = step(*arguments[:count], tree_unflatten(arguments[count:], form))
        return tuple(x.clone() for x in (after.params[leaf], *tree_leaves(after)))

    export: Any = torch._dynamo.export  # under the compiler's own rules, unlike make_fx
    graph = export(on_leaves, aten_graph=True)(*lanes, *tree_leaves(state)).graph_module
    _write_nan_as_a_product(graph)
    region: Any = torch.compiler.nested_compile_region(lambda *arguments: graph(*arguments))

    def several(*arguments: Tensor) -> tuple[Tensor, ...]:
        leaves, values = arguments[count:], []
        for _ in range(unroll):
            x, *leaves = region(*arguments[:count], *leaves)
            values.append(x)
        return torch.stack(values, 1), *leaves

    options: Any = OPTIONS if backend == "inductor" else None  # which it alone takes
    program: Any = torch.compile(
        several, dynamic=False, fullgraph=True, backend=backend, options=options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler warns of itself
        program(*lanes, *tree_leaves(state))

    def run(*arguments: Any) -> tuple[TrainState, Tensor]:
        *lanes, state = arguments
        values, *leaves = program(*lanes, *tree_leaves(state))
        return tree_unflatten(leaves, form), values

    return run


def _write_nan_as_a_product(graph: torch.fx.GraphModule) -> None:
    """∞·0, for the sake of a region that is traced again: before torch 2.12 that is every one, and
    its constants are compared with those of the first, which NaN never equals.
    """
    nodes, aten = graph.graph, torch.ops.aten
    for node in nodes.find_nodes(op="call_function", target=aten.full_like.default):
        if math.isnan(node.args[1]):
            node.update_arg(1, math.inf)
            with nodes.inserting_after(node):
                product = nodes.call_function(aten.mul.Scalar, (node, 0.0))
            node.replace_all_uses_with(product, lambda user, product=product: user is not product)
    graph.recompile()
