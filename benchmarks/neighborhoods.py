"""What other neighborhoods cost: masks, circles, maps of different sizes, other grids, windows per token.

`python benchmarks/neighborhoods.py [RESULTS.json] [--only mask,wrap,...] [--once]`, on a GPU if there is one, else
smaller. Each problem's results are checked before anything is timed: against plain torch operations in float32, or
where it says so another way to the same result. Times are medians with quartiles, sampled in turns: as called (with the
host's share), and on a GPU also replayed from a CUDA graph. `--once` runs every call once, which compiles all kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import vicinal
from vicinal.bench.graphs import own_stream
from vicinal.bench.measure import Effort, time_calls, time_kernels
from vicinal.reference import neighborhood_mask

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
ALLOWED = 0.02 if CUDA else 1e-5  # relative error, root mean squares
EFFORT = Effort(samples=9, seconds=1.0)


@dataclass(frozen=True)
class Way:
    """One way to run a problem: a function of its leaves.

    Attributes:
        attend: what is timed.
        leaves: the tensors that have gradients.
        same: what else must have the same output and gradients; None where there is nothing to compare.
    """

    attend: Callable[..., Tensor]
    leaves: tuple[Tensor, ...]
    same: Callable[..., Tensor] | None = None


@dataclass(frozen=True)
class Problem:
    """Ways to be timed in turns; ratios are to the first."""

    name: str
    ways: dict[str, Way]
    backward: bool = True


def tensors(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Random, the same every time."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, device=DEVICE, dtype=DTYPE) for shape in shapes)


def plain(*leaves: Tensor, attend: Callable[..., Tensor], **rest: object) -> Tensor:
    """By torch operations, in float32."""
    return attend(*(t.float() for t in leaves), backend="torch", **rest)


def way(attend: Callable[..., Tensor], leaves: tuple[Tensor, ...], backend: str | None = None, **rest: object) -> Way:
    """Checked against plain torch operations."""
    return Way(partial(attend, backend=backend, **rest), leaves, partial(plain, attend=attend, **rest))


def masks() -> Iterator[Problem]:
    """Nothing masked, half of the map in blocks or as padding, half of the tokens scattered."""
    listed = [(4, 128, 33, 64), (4, 128, 13, 64), (2, 128, 13, 128)] if CUDA else [(1, 48, 13, 64)]
    for batch, length, window, dim in listed:
        qkv = tensors(*[(batch, length, length, 8, dim)] * 3)
        i = torch.arange(length, device=DEVICE)
        block = length // 4
        chess = (i[:, None] // block + i[None, :] // block) % 2 == 0
        scattered = torch.rand(length, length, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.5
        each = {
            "masks nothing": torch.ones(length, length, dtype=torch.bool, device=DEVICE),
            "blocks": chess,
            "right half": (i < length // 2).expand(length, length),
            "scattered": scattered,
        }
        attend = partial(vicinal.na2d, kernel_size=window)
        ways = {"no mask": way(attend, qkv)}
        if CUDA:
            ways["no mask, triton"] = way(attend, qkv, "triton")
        for name, mask in each.items():
            ways[name] = way(attend, qkv, key_mask=mask)
            if CUDA:
                ways |= {f"{name}, {b}": way(attend, qkv, b, key_mask=mask) for b in ("hopper", "triton")}
        yield Problem(f"key_mask {length}x{length} B{batch} H8 D{dim} w{window}", ways)


def circles() -> Iterator[Problem]:
    """The last axis is a circle, or has ends."""
    listed = [((721, 1440), 16, 48, 31), ((128, 256), 8, 64, 13)]
    for lengths, heads, dim, window in listed if CUDA else [((64, 128), 4, 64, 13), ((48, 96), 4, 48, 31)]:
        qkv = tensors(*[(1, *lengths, heads, dim)] * 3)
        attend = partial(vicinal.na2d, kernel_size=window)
        turn = lengths[1] // 3

        def turned(*leaves: Tensor, attend: Callable[..., Tensor] = attend, turn: int = turn) -> Tensor:
            found = attend(*(t.roll(turn, 2) for t in leaves), boundary=("shift", "wrap"))
            return found.roll(-turn, 2)

        small = prod(lengths) < 1 << 17
        wraps = {"boundary": ("shift", "wrap")}
        ways = {"shift": Way(partial(attend, boundary="shift"), qkv)}
        around = way(attend, qkv, None, **wraps)
        ways["wrap"] = around if small else Way(around.attend, qkv, turned)
        if CUDA:
            ways["shift, triton"] = Way(partial(attend, backend="triton"), qkv)
            ways["wrap, triton"] = Way(partial(attend, backend="triton", **wraps), qkv, around.attend)
        by = "x".join(map(str, lengths))
        yield Problem(f"circle {by} H{heads} D{dim} w{window}", ways)


def sizes() -> Iterator[Problem]:
    """Maps of many sizes against as many tokens in equal maps, and against the same maps padded, with a mask."""
    count, least, most = (32, 20, 64) if CUDA else (6, 10, 24)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(least, most + 1, (count, 2), generator=generator).tolist()
    for dim in (64, 32):
        yield from _maps(lengths, dim, f"{count} maps of {least}..{most}")


def _maps(lengths: list[list[int]], dim: int, name: str) -> Iterator[Problem]:
    count, total = len(lengths), sum(h * w for h, w in lengths)
    side = round((total / count) ** 0.5)
    packed = tensors(*[(total, 8, dim)] * 3)
    equal = tensors(*[(count, side, side, 8, dim)] * 3)
    high, wide = (max(n) for n in zip(*lengths))
    mask = torch.zeros(count, high, wide, dtype=torch.bool, device=DEVICE)
    for own, (h, w) in zip(mask, lengths):
        own[:h, :w] = True
    padded = tuple(t.new_zeros(count, high, wide, 8, dim).masked_scatter(mask[..., None, None], t) for t in packed)

    def one_by_one(*leaves: Tensor) -> Tensor:
        maps = zip(*(t.split([h * w for h, w in lengths]) for t in leaves))
        each = (vicinal.na2d(*(t.view(1, h, w, 8, dim) for t in own), 7) for (h, w), own in zip(lengths, maps))
        return torch.cat([t.flatten(0, 2) for t in each])

    attend = partial(vicinal.na2d, kernel_size=7)
    ways = {"equal maps": way(attend, equal)}
    if CUDA:
        ways["equal maps, triton"] = way(attend, equal, "triton")
    ways["varlen"] = Way(lambda *t: vicinal.na2d_varlen(*t, lengths, 7), packed, one_by_one)
    ways["padded, with a mask"] = way(attend, padded, key_mask=mask)
    ways["one by one"] = Way(one_by_one, packed)
    yield Problem(f"{name} H8 D{dim} w7, {total} tokens", ways)


def grids() -> Iterator[Problem]:
    """An upsampler's queries over coarse keys, and what torch has for it: attention under a dense mask."""
    fine, coarse = (512, 32) if CUDA else (48, 12)
    qkv = tensors((1, fine, fine, 4, 8), (1, coarse, coarse, 4, 8), (1, coarse, coarse, 4, 128))
    attend = partial(vicinal.na2d, kernel_size=9)
    ways = {"other grid": way(attend, qkv)}
    keys = neighborhood_mask(vicinal.Neighborhood.of(2, 9).resolve((coarse, coarse)), (coarse, coarse)).to(DEVICE)
    place = (2 * torch.arange(fine, device=DEVICE) + 1) * coarse // (2 * fine)
    mask = keys[(place[:, None] * coarse + place).flatten()]

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (query, key, value))
        return scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).unflatten(1, (fine, fine))

    ways["torch, dense mask"] = Way(dense, qkv, ways["other grid"].same)
    yield Problem(f"{fine}x{fine} queries over {coarse}x{coarse} keys H4 D8 Dv128 w9", ways)


def tokens() -> Iterator[Problem]:
    """Windows of 3 to 13, and all of them 13, against the plain window 13."""
    batch, length = (4, 128) if CUDA else (1, 48)
    qkv = tensors(*[(batch, length, length, 8, 64)] * 3)
    generator = torch.Generator().manual_seed(0)
    scattered = 2 * torch.randint(1, 7, (batch, length, length), generator=generator).to(DEVICE) + 1
    coarse = 2 * torch.randint(1, 7, (batch, length // 16, length // 16), generator=generator).to(DEVICE) + 1
    areas = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
    attend = partial(vicinal.na2d, kernel_size=13)
    ways = {"one window": way(attend, qkv)}
    if CUDA:
        ways["one window, triton"] = way(attend, qkv, "triton")
    each = {"scattered 3..13": scattered, "areas 3..13": areas, "all 13": torch.full_like(scattered, 13)}
    for name, own in each.items():
        ways[name] = way(vicinal.na2d, qkv, kernel_size=own, max_kernel_size=13)
    yield Problem(f"windows per token {length}x{length} B{batch} H8 D64 at most 13", ways)


SECTIONS = {"mask": masks, "wrap": circles, "varlen": sizes, "grid": grids, "token": tokens}


def gradients(attend: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> list[Tensor]:
    """The output, and the gradients of the leaves."""
    own = [t.detach().requires_grad_() for t in leaves]
    output = attend(*own)
    above = torch.randn(output.shape, generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE)
    return [output.detach(), *torch.autograd.grad(output, own, above.to(output.dtype))]


def error(one: Way) -> float:
    """The largest relative error of output and gradients."""
    if one.same is None:
        return 0.0
    pairs = zip(gradients(one.attend, one.leaves), gradients(one.same, one.leaves))
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)


def times(problem: Problem) -> Iterator[tuple[str, str, str, object]]:
    """Pass, kind of time, way, timing."""
    for passed in ("forward", "backward"):
        calls = {name: call(one, passed) for name, one in problem.ways.items()}
        kinds = {"called": time_calls(calls, DEVICE, EFFORT)}
        if CUDA:
            kinds["kernels"] = time_kernels(calls, DEVICE, EFFORT)
        for kind, each in kinds.items():
            for name, timing in each.items():
                yield passed, kind, name, timing


def call(one: Way, passed: str) -> Callable[[], object]:
    """The forward pass without gradients, or the backward pass alone."""
    if passed == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return one.attend(*one.leaves)

        return forward
    own = [t.detach().requires_grad_() for t in one.leaves]
    output = one.attend(*own)
    return partial(torch.autograd.grad, output, own, torch.randn_like(output), retain_graph=True)


def main() -> int:
    """Check, time, print, and write after each problem."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", nargs="?")
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--once", action="store_true")
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if CUDA else "cpu"
    rows: list[dict[str, object]] = []
    failed = 0
    for section in arguments.only.split(","):
        with own_stream(torch.device(DEVICE)):
            for problem in SECTIONS[section]():
                try:
                    errors = {name: error(one) for name, one in problem.ways.items()}
                except Exception as reason:
                    print(f"{problem.name}: {type(reason).__name__}: {str(reason)[:300]}", flush=True)
                    failed += 1
                    continue
                wrong = {name: e for name, e in errors.items() if not e < ALLOWED}
                print(f"{problem.name}: errors {max(errors.values()):.2g}, wrong: {wrong}", flush=True)
                failed += len(wrong)
                if arguments.once:
                    continue
                good = {name: one for name, one in problem.ways.items() if name not in wrong}
                firsts: dict[tuple[str, str], float] = {}
                for passed, kind, name, timing in times(Problem(problem.name, good)):
                    if isinstance(timing, str):
                        print(f"  {passed:8} {kind:7} {name:22} {timing}", flush=True)
                        continue
                    ms = [1e3 * t for t in (timing.median, timing.lower, timing.upper)]
                    first = firsts.setdefault((passed, kind), ms[0])
                    ratio = ms[0] / first
                    print(f"  {passed:8} {kind:7} {name:22} {ms[0]:8.3f} ms ({ms[1]:.3f} to {ms[2]:.3f}) {ratio:6.3f}")
                    row = {"problem": problem.name, "pass": passed, "time": kind, "way": name, "error": errors[name]}
                    rows.append(row | {"ms": ms[0], "quartiles_ms": ms[1:], "ratio": ratio})
                if arguments.path is not None:
                    with open(arguments.path, "w") as file:
                        json.dump({"device": device, "rows": rows}, file, indent=1)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
