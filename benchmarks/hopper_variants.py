"""Times tilings of the `hopper` backend against cuDNN's self attention, after checking each against sampled queries.

Every problem runs in a child process with a time limit, so that one that hangs costs only its own time.
Usage: PYTHONPATH=src python3 benchmarks/hopper_variants.py [--limit SECONDS] [--backward] [--top N] PROBLEM...
Prints a table; writes JSON lines to $OUT/hopper_variants.json where $OUT is set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

PROBLEMS = {  # name: (batch, lengths, heads or (heads, kv heads), head_dim, neighborhood's arguments)
    "2d-80": (1, (256, 256), 24, 128, {"kernel_size": 80}),
    "2d-80-s16": (1, (256, 256), 24, 128, {"kernel_size": 80, "stride": 16}),
    "3d": (1, (30, 48, 80), 24, 128, {"kernel_size": (18, 24, 24)}),
    "3d-s": (1, (30, 48, 80), 24, 128, {"kernel_size": (18, 24, 24), "stride": (16, 8, 8)}),
    "cosmos-s": (1, (24, 44, 80), 16, 128, {"kernel_size": (24, 12, 24), "stride": (1, 4, 8)}),
    "cosmos-d": (1, (24, 44, 80), 16, 128, {"kernel_size": (24, 4, 16), "dilation": (1, 11, 5)}),
    "1d": (1, (32768,), 16, 128, {"kernel_size": 2048}),
    "1d-causal": (1, (32768,), 16, 128, {"kernel_size": 2048, "is_causal": True}),
    "1d-h1": (1, (32768,), 1, 128, {"kernel_size": 2048}),
    "dense": (1, (128, 128), 24, 128, {"kernel_size": 128}),
    "2d-33": (4, (128, 128), 8, 64, {"kernel_size": 33}),
    "2d-13": (4, (128, 128), 8, 64, {"kernel_size": 13}),
    "dense-64": (4, (128, 128), 8, 64, {"kernel_size": 128}),
    "2d-dilated": (8, (64, 64), 1, 64, {"kernel_size": 11, "dilation": 5}),
    "1d-dilated": (2, (2048,), 16, 64, {"kernel_size": 255, "dilation": 5}),
    "2d-d96": (4, (128, 128), 8, 96, {"kernel_size": 33}),
    "2d-d256": (4, (64, 64), 8, 256, {"kernel_size": 33}),
    "2d-gqa": (4, (128, 128), (8, 2), 64, {"kernel_size": 13}),
    "ltx": (1, (33, 128, 224), 2, 64, {"kernel_size": (3, 7, 7)}),
}
SAMPLES = 16


def main() -> None:
    """Run every problem in a child process; print and keep what they report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--extra", default="", help="more: ForwardConfig((4, 16), (8, 16), 1, 2, paired=True), ...")
    parser.add_argument("--backend", default="hopper", help="another backend, for comparison")
    parser.add_argument("--warm", action="store_true", help="all problems at once, without times: compiles and checks")
    parser.add_argument("problems", nargs="*")
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    lines = []
    flags = ["--backward"] * options.backward + ["--top", str(options.top), "--extra", options.extra]
    flags += ["--backend", options.backend]
    flags += ["--warm"] * options.warm

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--child", *flags, name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    names = options.problems or list(PROBLEMS)
    running = [start(name) for name in names] if options.warm else []
    deadline = time.monotonic() + options.limit
    for i, name in enumerate(names):
        process = running[i] if running else start(name)
        try:
            left = deadline - time.monotonic() if running else options.limit
            out, err = process.communicate(timeout=max(left, 1.0))
            err = err[-1500:] if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()[0], "TIME LIMIT"
        print(out, end="", flush=True)
        if err:
            print(name, "FAILED", err, flush=True)
        lines += [x for x in out.splitlines() if x.startswith("{")]
    if "OUT" in os.environ:
        with Path(os.environ["OUT"], "hopper_variants.json").open("a") as file:
            file.write("\n".join(lines) + "\n")


def child(options: argparse.Namespace) -> None:
    """Check and time the problems of one process."""
    for name in options.problems:
        run(name, options)


def run(name: str, options: argparse.Namespace) -> None:
    """Check and time one problem."""
    import torch

    from vicinal.dispatch import backend as backend_of
    from vicinal.geometry.neighborhood import Neighborhood
    from vicinal.problem import Inputs, Problem, Upstream, Wanted

    batch, lengths, heads, head_dim, arguments = PROBLEMS[name]
    torch.manual_seed(0)
    heads, kv_heads = heads if isinstance(heads, tuple) else (heads, heads)
    shape = (batch, *lengths, heads, head_dim)
    counts = (heads, kv_heads, kv_heads)
    inputs = Inputs(*(torch.randn((batch, *lengths, h, head_dim), device="cuda", dtype=torch.bfloat16) for h in counts))
    neighborhood = Neighborhood.of(len(lengths), **arguments).resolve(lengths)
    problem = Problem.of(inputs, [neighborhood], head_dim**-0.5)
    BACKEND = backend_of(options.backend)
    reason = BACKEND.unsupported(problem)
    assert reason is None, reason
    dense = 0.0 if options.warm else dense_times(inputs, options.backward)
    tokens = 1
    for n in lengths:
        tokens *= n
    limit = batch * heads * tokens * tokens / problem.useful_scores
    direction = "backward" if options.backward else "forward"
    configs = list(BACKEND.configs(problem, direction)[: options.top])
    configs += extra(options.extra, len(lengths))
    grad = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    for config in configs:
        row = {
            "problem": name,
            "backend": options.backend,
            "direction": direction,
            "config": str(config),
            "limit": limit,
            "cudnn_ms": dense,
        }
        try:
            if options.backward:
                first = BACKEND.configs(problem, "forward")[0]
                out, lse = BACKEND.forward(problem, first, inputs)

                def call(config=config, out=out, lse=lse):
                    return BACKEND.backward(problem, config, inputs, Upstream(out, lse, grad, None), Wanted.of(inputs))

                row["error"] = check_backward(problem, neighborhood, inputs, out, lse, grad, call())
            else:

                def call(config=config):
                    return BACKEND.forward(problem, config, inputs)

                row["error"] = check_forward(problem, neighborhood, inputs, *call())
            if options.warm:
                continue
            row["ms"] = graph_time(call)
            row["eager_ms"] = eager_time(call)
            row["host_us"] = host_time(call)
            row["efficiency"] = dense / row["ms"] / limit
        except Exception as error:
            row["failed"] = repr(error)[:300]
        print(json.dumps(row), flush=True)
        if "ms" in row:
            print(
                f"  {name:10s} {config!s:80s} {row['ms']:8.3f} ms  eager {row['eager_ms']:8.3f}  host"
                f" {row['host_us']:5.0f} us"
                f"  eff {100 * row['efficiency']:5.1f}%  err {row['error']:.1e}  cudnn {dense:.2f}",
                flush=True,
            )


def extra(text: str, rank: int) -> list:
    """The tilings written on the command line, in Python, that have this rank."""
    from vicinal.backends.hopper.config import BackwardConfig, ForwardConfig

    names = {"ForwardConfig": ForwardConfig, "BackwardConfig": BackwardConfig}
    configs = eval(f"[{text}]", names)
    return [config for config in configs if len(config.query_tile) == rank]


# --- checks ------------------------------------------------------------------------------------------------


def axis_keys(axis, length: int, i: int) -> list[int]:
    """The keys of query `i`, by the oracle's definition."""
    from vicinal.reference import neighbors

    return neighbors(axis, length, i)


def check_forward(problem, neighborhood, inputs, out, lse) -> float:
    """The relative error of sampled queries against float32 attention over their windows; raises if it is large."""
    import torch

    generator = torch.Generator().manual_seed(1)
    q, k, v = inputs.query, *(t.repeat_interleave(problem.group_size, -2) for t in inputs[1:3])
    worst = 0.0
    for _ in range(SAMPLES):
        i = [int(torch.randint(n, (1,), generator=generator)) for n in problem.lengths]
        keys = [axis_keys(a, n, x) for a, n, x in zip(neighborhood.axes, problem.lengths, i)]
        index = tuple(torch.tensor(list(x), device="cuda") for x in zip(*product(*keys)))
        kk, vv = k[(slice(None), *index)].float(), v[(slice(None), *index)].float()  # [B, keys, H, D]
        at = (slice(None), *i)
        s = torch.einsum("bhd,bnhd->bhn", q[at].float(), kk) * problem.scale
        want = torch.einsum("bhn,bnhd->bhd", s.softmax(-1), vv)
        worst = max(worst, float((out[at].float() - want).norm() / want.norm()))
        assert torch.allclose(lse[at], s.logsumexp(-1), atol=2e-2, rtol=1e-3), (i, lse[at], s.logsumexp(-1))
    assert worst < 8e-3, f"relative error {worst}"
    assert bool(out.isfinite().all())
    return worst


def check_backward(problem, neighborhood, inputs, out, lse, grad, grads) -> float:
    """The relative error of the gradients of sampled tokens; raises if it is large."""
    import torch

    from vicinal.geometry.tiles import query_interval

    generator = torch.Generator().manual_seed(1)
    q, k, v = (t.float() for t in (inputs.query, inputs.key, inputs.value))
    delta = (out.float() * grad.float()).sum(-1)
    worst = 0.0
    for _ in range(SAMPLES // 2):
        i = [int(torch.randint(n, (1,), generator=generator)) for n in problem.lengths]
        at = (slice(None), *i)
        keys = [axis_keys(a, n, x) for a, n, x in zip(neighborhood.axes, problem.lengths, i)]
        index = (slice(None), *(torch.tensor(list(x), device="cuda") for x in zip(*product(*keys))))
        p = (torch.einsum("bhd,bnhd->bhn", q[at], k[index]) * problem.scale - lse[at][..., None]).exp()
        ds = p * (torch.einsum("bhd,bnhd->bhn", grad[at].float(), v[index]) - delta[at][..., None])
        want = {"query": torch.einsum("bhn,bnhd->bhd", ds, k[index]) * problem.scale}
        groups = [range(x % a.dilation, n, a.dilation) for a, n, x in zip(neighborhood.axes, problem.lengths, i)]
        queries = []
        for a, group, x in zip(neighborhood.axes, groups, i):
            j = x // a.dilation
            first, last = query_interval(a, len(group), (j, j + 1))
            queries.append([group[y] for y in range(first, last)])
        index = (slice(None), *(torch.tensor(list(x), device="cuda") for x in zip(*product(*queries))))
        do = grad[index].float()
        p = (torch.einsum("bnhd,bhd->bhn", q[index], k[at]) * problem.scale - lse[index].transpose(1, 2)).exp()
        ds = p * (torch.einsum("bnhd,bhd->bhn", do, v[at]) - delta[index].transpose(1, 2))
        want["key"] = torch.einsum("bhn,bnhd->bhd", ds, q[index]) * problem.scale
        want["value"] = torch.einsum("bhn,bnhd->bhd", p, do)
        for field, value in want.items():
            got = getattr(grads, field)[at].float()
            worst = max(worst, float((got - value).norm() / value.norm()))
    assert worst < 2e-2, f"relative error {worst}"
    return worst


# --- times -------------------------------------------------------------------------------------------------


def dense_times(inputs, backward: bool) -> float:
    """CuDNN's self attention over the same tokens (flash attention's where cuDNN does not take it), ms."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (
        t.repeat_interleave(inputs.query.shape[-2] // t.shape[-2], -2)
        .flatten(1, -3)
        .transpose(1, 2)
        .detach()
        .requires_grad_(backward)
        for t in inputs[:3]
    )
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        if not backward:
            return graph_time(lambda: scaled_dot_product_attention(q, k, v))
        out = scaled_dot_product_attention(q, k, v)
        grad = torch.randn_like(out)
        return eager_time(lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True))


def graph_time(call) -> float:
    """Kernel time of one call, ms: captured in a CUDA graph, median of replays."""
    import torch

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    milliseconds = _median(graph.replay)
    del kept
    return milliseconds


def eager_time(call) -> float:
    """Time of one eager call on the device's clock, ms."""
    call()
    return _median(call)


def host_time(call) -> float:
    """Host time of one call, microseconds: without waiting for the device."""
    import torch

    torch.cuda.synchronize()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        torch.cuda.synchronize()
    return sorted(times)[len(times) // 2] * 1e6


def _median(call) -> float:
    import torch

    def once() -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop)

    first = once()
    repeats = max(3, min(30, int(400 / max(first, 0.01))))
    times = sorted(once() for _ in range(repeats))
    return times[len(times) // 2]


if __name__ == "__main__":
    main()
