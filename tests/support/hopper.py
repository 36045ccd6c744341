"""The Triton kernel compiles for a Hopper GPU, which takes no GPU, to arithmetic in float64 alone,
within a multiprocessor's shared memory: `python -m tests.support.hopper COUNT` for so many cases,
in a process whose Triton is not its interpreter.
"""

import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mtlfunc.solvers._kernels import active_set_gpu as gpu

POINTERS = {"report": "*fp64", "support": "*i1", "info": "*i64"}
# Few tasks, which take other launch options, once; every kind at the most tasks, which need the
# most shared memory, and there each width of the input.
CASES = [
    (gpu.CAGRAD, 5, "fp32"),
    (gpu.MIN_NORM, 128, "fp32"),
    (gpu.CAGRAD, 128, "fp64"),
    (gpu.DUAL_CONE, 128, "fp32"),
]


def compiles(kind, count: int, dtype: str) -> None:
    size = gpu.block(count)
    constants = {"KIND": kind.value, "N": size, "EPS": torch.finfo(torch.float64).eps}
    kernel = gpu._solve_one
    signature = {
        name: "i32"
        if name in ("tasks", "gramian_stride", "vector_stride", "c_stride")
        else f"*{dtype}"
        for name in kernel.arg_names
    }
    source = ASTSource(
        fn=kernel,
        signature=signature | POINTERS | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=gpu.launch(size))
    assert len(compiled.asm["cubin"]) > 0
    assert compiled.metadata.shared <= 227 * 1024
    assert compiled.metadata.num_warps * 32 <= 1024
    arithmetic = (
        r"\b(?:add|sub|mul|div|rcp|fma|sqrt|max|min|abs|neg)\S*\.f32\b|\bcvt\S*\.f32\.f64\b"
    )
    assert re.search(arithmetic, compiled.asm["ptx"]) is None


if __name__ == "__main__":
    for case in CASES[: int(sys.argv[1])]:
        print(*case, flush=True)
        compiles(*case)
