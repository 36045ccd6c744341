"""The Triton kernel compiles for Ampere and Hopper GPUs, which takes no GPU, to arithmetic in
float64 alone that nothing contracts, within a multiprocessor's shared memory:
`python -m tests.support.hopper COUNT [VERSION]` for so many cases, or for 0 the first on Hopper
alone, in a process whose Triton is not its interpreter (and has this version).
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
SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a program can have, by compute capability."""
# what an instruction with an explicit rounding computes is never contracted by the assembler
CONTRACTED = r"\b(?:fma|mad)\S*\.f64\b|\b(?:add|sub|mul)\.f64\b"
NARROW = r"\b(?:add|sub|mul|div|rcp|fma|sqrt|max|min|abs|neg)\S*\.f32\b|\bcvt\S*\.f32\.f64\b"


def compiles(capability: int, kind, count: int, dtype: str) -> None:
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
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=gpu.launch(size))
    assert len(compiled.asm["cubin"]) > 0
    assert compiled.metadata.shared <= SHARED[capability]
    assert compiled.metadata.num_warps * 32 <= 1024
    ptx = compiled.asm["ptx"]
    for pattern in (NARROW, CONTRACTED):
        assert re.search(pattern, ptx) is None, re.findall(pattern, ptx)[:3]
    assert re.search(r"\bmul\.rn\.f64\b", ptx)  # the patterns know how it is written


if __name__ == "__main__":
    print("Triton", triton.__version__, flush=True)
    assert triton.__version__ in (sys.argv[2:] or [triton.__version__])
    count = int(sys.argv[1])
    for case in CASES[: count or 1]:
        for capability in [*SHARED][0 if count else 1 :]:
            print(capability, *case, flush=True)
            compiles(capability, *case)
