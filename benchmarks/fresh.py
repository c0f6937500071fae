"""What a fresh process takes to its first result and gradient, by parts; prints one JSON object.

    PYTHONPATH=src python3 benchmarks/fresh.py BACKEND [PROFILE]

BACKEND: "hopper", "triton", or "automatic". 64x64 tokens, 4 heads of 64, window 13, bfloat16, on a GPU. Parts, seconds:
torch (its import, a matrix product on the device and its gradient: what any program takes), triton and vicinal (their
imports), first result, first gradient. With PROFILE the two calls run under cProfile, which takes longer, and its table
goes to that file. What Triton finds on disk is TRITON_CACHE_DIR's.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import time

clock = time.perf_counter
taken = {}


def passed(name: str) -> None:
    """A part ends here, and the next one begins."""
    global start
    taken[name], start = clock() - start, clock()


start = clock()
import torch  # noqa: E402

q, k, v = (torch.randn(1, 64, 64, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
product = q.flatten(0, 3) @ k.flatten(0, 3).T[:, :64]
torch.autograd.grad(product, q, torch.ones_like(product))[0].sum().item()
passed("torch")
import triton  # noqa: E402

passed("triton")
import vicinal  # noqa: E402

passed("vicinal")
backend, *profiled = sys.argv[1:]
profile = cProfile.Profile()
if profiled:
    profile.enable()
output = vicinal.na2d(q, k, v, 13, backend=None if backend == "automatic" else backend)
torch.cuda.synchronize()
passed("first result")
output.backward(torch.ones_like(output))
torch.cuda.synchronize()
passed("first gradient")
profile.disable()
if profiled:
    with open(profiled[0], "w") as file:
        table = pstats.Stats(profile, stream=file)
        table.sort_stats("cumulative").print_stats(70)
        table.sort_stats("tottime").print_stats(30)
print(json.dumps({"backend": backend, "profiled": bool(profiled), "triton version": triton.__version__, **taken}))
