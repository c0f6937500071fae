"""Compiles the Hopper kernels for sm_90a on a machine without a GPU, and prints what ptxas says, as JSON lines.

Run by `test_compile.py` in a process of its own: a stand-in driver names the target, and must not meet the interpreter
that the other tests turn on. Usage: python compile_only.py KERNEL:CASE... (see CASES), where "unchained-" before a
kernel compiles it to be launched when the one ahead has ended.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "gpu"))  # the folder of ptx, ptxas

from ptx import before_waits
from ptxas import compiled_with_log, number

from vicinal.backends import hopper
from vicinal.backends.gpu.absent import AbsentDriver
from vicinal.backends.hopper import additional, onepass
from vicinal.backends.hopper import arguments as hopper_arguments
from vicinal.backends.hopper import backward as hopper_backward
from vicinal.backends.hopper import forward as hopper_forward
from vicinal.backends.hopper.config import ForwardConfig
from vicinal.backends.hopper.tilings import one_pass_configs
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.problem import Inputs, Problem

# name: lengths, heads, kv heads, head dim, value dim, dtype, neighborhood's arguments
BF16, FP16 = torch.bfloat16, torch.float16
CASES = {
    "1d": ((512,), 2, 2, 128, 128, BF16, {"kernel_size": 100}),
    "1d-causal": ((512,), 2, 2, 128, 128, BF16, {"kernel_size": 100, "is_causal": True}),
    "2d": ((64, 64), 2, 2, 128, 128, BF16, {"kernel_size": 13}),
    "2d-gqa": ((64, 64), 8, 2, 128, 128, BF16, {"kernel_size": 7}),
    "2d-other": ((77, 96), 3, 3, 128, 128, BF16, {"kernel_size": (32, 17)}),
    "2d-stride": ((64, 64), 2, 2, 128, 128, BF16, {"kernel_size": 16, "stride": 16}),
    "3d": ((8, 16, 16), 4, 2, 128, 128, BF16, {"kernel_size": (5, 9, 9)}),
    "3d-stride": ((8, 16, 16), 2, 2, 128, 128, BF16, {"kernel_size": (4, 8, 8), "stride": (1, 2, 4)}),
    "2d-heads": ((64, 64), 2, 2, 64, 64, BF16, [{"kernel_size": 13}, {"kernel_size": 7, "is_causal": True}]),
    "d32": ((64, 64), 2, 2, 32, 32, FP16, {"kernel_size": 13}),
    "d64": ((64, 64), 2, 2, 64, 64, BF16, {"kernel_size": 13}),
    "d96": ((64, 64), 2, 2, 96, 96, BF16, {"kernel_size": 13}),
    "d192": ((64, 64), 2, 2, 192, 192, BF16, {"kernel_size": 13}),
    "d192-128": ((64, 64), 2, 2, 192, 128, BF16, {"kernel_size": 13}),
    "d256": ((64, 64), 2, 2, 256, 256, BF16, {"kernel_size": 13}),
    "d8": ((64, 64), 2, 2, 8, 8, BF16, {"kernel_size": 13}),
    "d48": ((64, 64), 2, 2, 48, 48, BF16, {"kernel_size": 13}),
    "d72": ((64, 64), 2, 2, 72, 72, BF16, {"kernel_size": 13}),
    "d160": ((64, 64), 2, 2, 160, 160, BF16, {"kernel_size": 13}),
    "d200": ((64, 64), 2, 2, 200, 200, BF16, {"kernel_size": 13}),
    "d64-128": ((64, 64), 2, 2, 64, 128, BF16, {"kernel_size": 13}),
    "d96-192": ((64, 64), 2, 2, 96, 192, BF16, {"kernel_size": 13}),
    "d256-40": ((64, 64), 2, 2, 256, 40, BF16, {"kernel_size": 13}),
    "d24-256": ((64, 64), 2, 2, 24, 256, BF16, {"kernel_size": 13}),
    "2d-more": ((64, 64), 2, 2, 128, 128, BF16, {"kernel_size": 13}),
    "2d-gqa-more": ((64, 64), 8, 2, 128, 128, BF16, {"kernel_size": 7}),
    "d64-more": ((64, 64), 2, 2, 64, 64, BF16, {"kernel_size": 13}),
    "d48-more": ((64, 64), 2, 2, 48, 48, BF16, {"kernel_size": 13}),
    "d256-more": ((64, 64), 2, 2, 256, 256, BF16, {"kernel_size": 13}),
    "3d-more": ((8, 16, 16), 4, 2, 128, 128, BF16, {"kernel_size": (5, 9, 9)}),
    "2d-part": ((40, 64), 2, 2, 128, 128, BF16, {"kernel_size": 13, "spans": (Span(96, (30, 70), (24, 77)), None)}),
    "3d-part": (
        (8, 16, 16),
        2,
        2,
        128,
        128,
        BF16,
        {"kernel_size": (4, 8, 8), "stride": (1, 2, 4), "spans": (Span(20, (4, 12), (2, 14)), None, None)},
    ),
    "masked-d64": ((64, 64), 2, 2, 64, 64, BF16, {"kernel_size": 13}),
    "masked-d192": ((64, 64), 2, 2, 192, 192, BF16, {"kernel_size": 13}),
    "masked-3d": ((8, 16, 16), 4, 2, 128, 128, BF16, {"kernel_size": (5, 9, 9)}),
    "negative": ((64, 64), 2, 2, 64, 64, BF16, {"kernel_size": 13}),
}


def neighborhood_of(rank: int, spans: tuple[Span | None, ...] = (), **arguments) -> Neighborhood:
    neighborhood = Neighborhood.of(rank, **arguments)
    return neighborhood.over(spans) if spans else neighborhood


def problem_of(case: str) -> Problem:
    lengths, heads, kv_heads, head_dim, value_dim, dtype, arguments = CASES[case]
    each = arguments if isinstance(arguments, list) else [arguments]
    neighborhoods = [neighborhood_of(len(lengths), **own) for own in each]
    keys = neighborhoods[0].key_lengths(lengths)
    query = torch.zeros(1, *lengths, heads, head_dim, dtype=dtype)
    key = torch.zeros(1, *keys, kv_heads, head_dim, dtype=dtype)
    value = torch.zeros(1, *keys, kv_heads, value_dim, dtype=dtype)
    more = [torch.zeros(1, 77, kv_heads, d, dtype=dtype) for d in (head_dim, value_dim)] if "more" in case else []
    mask = torch.ones(1, *lengths, dtype=torch.bool) if "masked" in case else None
    scale = -1.0 if case == "negative" else head_dim**-0.5
    return Problem.of(Inputs(query, key, value, *more, key_mask=mask), neighborhoods, scale)


def compile_forward(case: str, config: ForwardConfig | None = None):
    problem = problem_of(case)
    query, key, value, output, lse, table, *more = tensors_of(problem)
    config = config or hopper.forward_configs(problem)[0]
    ((launch, steps),) = hopper_forward.launchers(problem, config, strides_of(query, key, value, *more))
    if steps is not None:
        table = steps.like(lse)
    return launch.compile(query, key, value, output, lse, table, *more)


def compile_backward(case: str, kernel: str):
    """`kernel`: "prepare", "keys", "queries", "more", or one of the gradients that "keys" makes: "dk", "dv"."""
    problem = problem_of(case)
    query, key, value, output, lse, table, *more = tensors_of(problem)
    config = hopper.backward_configs(problem)[0]
    has_more = problem.additional > 0
    passes = hopper_backward.Passes(True, kernel != "dv", kernel != "dk", has_more, has_more, has_grad_lse=True)
    (part,) = hopper_backward.launchers(problem, config, strides_of(query, key, value, *more), passes)
    rows = torch.zeros(part.rows)
    if kernel == "more":
        return part.more.launch.compile(query, output, rows, rows, *more, rows, rows, table)
    if part.keys.steps is not None:
        table = part.keys.steps.like(lse)
    if kernel == "prepare":
        return part.prepare.compile(output, output, lse, lse, rows, rows, rows)
    if kernel == "queries":
        return part.queries.launch.compile(query, output, rows, rows, key, value, query, table, *more)
    return part.keys.launch.compile(query, output, rows, rows, key, value, key, value, table)


def compile_one_pass(case: str, kernel: str):
    """`kernel`: "onepass", "onepass_more", "steps", "finish", or "clearing", `prepare` which sets scratch to 0."""
    problem = problem_of(case)
    query, key, value, output, lse, table, *more = tensors_of(problem)
    config = one_pass_configs(problem)[0]
    (part,) = onepass.launchers(problem, config, strides_of(query, key, value, *more), has_grad_lse=True)
    rows, addends = torch.zeros(part.rows), torch.zeros(part.addends)
    steps = part.gradients.steps
    if steps is not None:
        table = steps.like(lse)
    if kernel == "steps":
        states = torch.zeros(1, dtype=torch.uint8)
        return steps.launch.compile(states, states, table)
    if kernel == "clearing":
        return part.prepare.compile(output, output, lse, lse, rows, rows, addends)
    if kernel == "finish":
        return part.finish.compile(addends, query)
    if kernel == "onepass_more":
        return part.more.launch.compile(query, output, rows, rows, *more, rows, rows, addends, addends, addends, table)
    return part.gradients.launch.compile(
        query, output, rows, rows, key, value, key, value, addends, addends, addends, table
    )


def tensors_of(problem: Problem) -> tuple[torch.Tensor, ...]:
    """Query, key, value, output, log-sum-exp and the table of heads; additional keys and values."""
    x = (problem.batch, *problem.lengths)
    query = torch.zeros(*x, problem.heads, problem.head_dim, dtype=problem.dtype)
    y = (problem.batch, *problem.key_lengths)
    key = torch.zeros(*y, problem.kv_heads, problem.head_dim, dtype=problem.dtype)
    value = torch.zeros(*y, problem.kv_heads, problem.value_dim, dtype=problem.dtype)
    output = torch.zeros(*x, problem.heads, problem.value_dim, dtype=problem.dtype)
    lse = torch.zeros(*x, problem.heads)
    table = hopper_arguments.head_table(problem)
    inputs = Inputs(query, key, value)
    if problem.additional:
        shape = (problem.batch, problem.additional, problem.kv_heads)
        more = (torch.zeros(*shape, d, dtype=problem.dtype) for d in (problem.head_dim, problem.value_dim))
        inputs = Inputs(query, key, value, *more)
    return query, key, value, output, lse, lse if table is None else table, *additional.readable(problem, inputs)


def strides_of(*tensors: torch.Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(t.stride() for t in tensors)


def report(case: str, kernel, log: str) -> dict:
    """What the compilers made: instructions of interest, shared memory, registers, spills, stack."""
    ptx = kernel.asm["ptx"]
    return {
        "case": case,
        "hash": kernel.hash,
        "shared": kernel.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "tma_loads": len(re.findall(r"cp\.async\.bulk\.tensor\.\dd\.shared", ptx)),
        "tma_stores": len(re.findall(r"cp\.async\.bulk\.tensor\.\dd\.global", ptx)),
        "setmaxnreg": ptx.count("setmaxnreg"),
        "fences": ptx.count("fence.proxy.async"),
        "barriers": ptx.count("bar.sync"),
        "pdl": kernel.metadata.launch_pdl,
        "waits": ptx.count("griddepcontrol.wait"),
        "lets": ptx.count("griddepcontrol.launch_dependents"),
        # where warps specialise, consumers write what they made of tiles that the producer has waited for
        "early": len(before_waits(ptx, writes="setmaxnreg" not in ptx)),
        "narrow_loads": len(re.findall(r"ld\.global\.b16", ptx)),
        "wide_loads": len(re.findall(r"ld\.global\.v4\.b32", ptx)),
        "registers": number(r"Used (\d+) registers", log),
        "stack": number(r"(\d+) bytes stack frame", log),
        "spill_stores": number(r"(\d+) bytes spill stores", log),
        "serialized": "wgmma.mma_async instructions are serialized" in log,
    }


def compile_named(name: str):
    """`name`: as on the command line."""
    direction, case = name.split(":")
    chained = not direction.startswith("unchained-")
    hopper_arguments.chains = hopper_backward.chains = onepass.chains = lambda device: chained
    direction = direction.removeprefix("unchained-")
    if direction == "paired":
        return compile_forward(case, ForwardConfig((8, 8), (8, 8), 0, 2, paired=True))
    if direction == "fixed":
        return compile_forward(case, ForwardConfig((8, 8), (8, 16), 0, 2))
    if direction == "forward":
        return compile_forward(case)
    if direction in ("onepass", "onepass_more", "steps", "clearing", "finish"):
        return compile_one_pass(case, direction)
    return compile_backward(case, direction)


if __name__ == "__main__":
    triton.runtime.driver.set_active(AbsentDriver(GPUTarget("cuda", 90, 32)))
    for name in sys.argv[1:]:
        kernel, log = compiled_with_log(lambda name=name: compile_named(name))
        if os.environ.get("PTX_TO"):
            Path(os.environ["PTX_TO"], f"{name.replace(':', '-')}.ptx").write_text(kernel.asm["ptx"])
        print(json.dumps(report(name, kernel, log)), flush=True)
