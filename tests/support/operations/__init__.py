"""Every node of autograd and every spelling of what is written out, as operations of networks."""

from __future__ import annotations

import torch

from tests.support.operations.algebra import COMPLEX, LINALG, PRODUCTS, REDUCTIONS
from tests.support.operations.common import DOUBLE as DOUBLE
from tests.support.operations.common import Operation
from tests.support.operations.common import constant as constant
from tests.support.operations.layers import ELEMENTWISE, LAYERS, LOSSES, NORMS
from tests.support.operations.places import INDEXING, SHAPES

OPERATIONS: dict[str, Operation] = {
    **ELEMENTWISE, **NORMS, **LAYERS, **LOSSES, **LINALG, **PRODUCTS, **REDUCTIONS, **INDEXING,
    **SHAPES, **COMPLEX,
}  # fmt: skip

# Relative errors of torch's own single pass in float64: a sixth is a float32 number there.
COARSE: dict[str, float] = dict.fromkeys(
    ("hardsigmoid", "hardsigmoid in place", "hardsigmoid in place nn"), 1e-7
)

# What torch cannot do, and says so: kinds of modes in the sweep, and words of the error.
_NO_FORWARD, _NO_SECOND = "forward AD with", "derivative for .* is not implemented"
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(
        ("zeta", "conv_tbc", "grid_sample", "grid_sample border", "grid_sample 3d", "soft_margin",
         "cholesky torch", "index_reduce mean", "index_reduce amax", "index_reduce amin"),
        (("forward",), _NO_FORWARD),
    ),
    **dict.fromkeys(
        ("embedding_bag offsets", "embedding_bag sum", "embedding_bag mean", "embedding_bag max",
         "embedding_bag weights", "multi_margin", "multilabel_margin", "ctc", "segment_reduce"),
        (("again",), f"{_NO_FORWARD}|{_NO_SECOND}"),
    ),
    **dict.fromkeys(
        ("rnn", "lstm", "gru", "lstm_cell"), (("inside",), "rule not implemented for aten::")
    ),
    **dict.fromkeys(
        ("hfft", "conj"), (("vmap", "inside"), "rule not implemented for aten::_neg_view")
    ),
    **dict.fromkeys(
        ("glu", "glu axis", "huber mean", "huber none"), (("forward, forward",), _NO_FORWARD)
    ),
    **dict.fromkeys(
        ("eig", "eigvals", "slogdet", "slogdet linalg", "logdet", "householder", "tensorsolve",
         "solve", "solve vector", "solve batch", "solve right", "solve_ex", "complex solve"),
        (("forward",), "torch's derivatives .* forward mode"),
    ),
    **dict.fromkeys(
        ("lu_solve", "lu_solve torch", "det", "det linalg", "complex det", "solve one batch",
         "solve for two", "logcumsumexp 0", "logcumsumexp -1", "pdist",
         "select_scatter", "select_scatter method", "index_fill tensor", "index_fill constant",
         "index_copy one number", "index_copy by one number", "index_copy by a number",
         "index_add by a number", "index_select by a number"),
        (("vmap", "inside", "again"), r"^\w+(\.\w+)?: torch's .* are wrong; \w+"),
    ),
    "pad_sequence": (("vmap", "inside", "again"), "inplace arithmetic|aten::pad_sequence"),
    **dict.fromkeys(("rrelu eval", "gaussian_nll"), (("vmap", "inside"), "vmap|yet support")),
    **dict.fromkeys(
        ("hardsigmoid", "hardsigmoid in place", "hardsigmoid in place nn"),
        (("again",), "hardsigmoid_backward"),
    ),
    **dict.fromkeys(
        ("batch_norm torch", "batch_norm native", "instance_norm torch"),
        (("vmap", "inside", "again"), "_norm: torch's batched second derivatives"),
    ),
    "embedding by frequency": (("vmap", "inside", "again"), "scale_grad_by_freq"),
    "conv_transpose1d": (("third",), "output_padding is not supported"),
    "as_strided_scatter": (("",), "as_strided_scatter: torch's derivatives by the input are wrong"),
    **dict.fromkeys(
        ("scatter_reduce prod", "index_reduce prod"),
        (("inside", "again"), "_reduce: torch's second|vmap: It looks like"),
    ),
}  # fmt: skip

if tuple(map(int, torch.__version__.split(".")[:2])) < (
    2,
    12,
):  # which brought the derivatives of these
    REFUSED |= dict.fromkeys(
        ("grid_sample", "grid_sample border", "grid_sample 3d"),
        (("forward", "again"), f"{_NO_FORWARD}|{_NO_SECOND}"),
    )
    OPERATIONS = {name: x for name, x in OPERATIONS.items() if "aminmax" not in name}
