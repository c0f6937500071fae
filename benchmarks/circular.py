"""What a circular axis costs: `boundary="wrap"` beside "shift", forward and both passes; results are checked first.

`python benchmarks/circular.py [RESULTS.json [SECONDS]]`, on a GPU if there is one. A circle turned by some tokens has
the turned result; wrap copies keys and values once with what both ends need (`vicinal.circular`).
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

import torch

from vicinal import na2d

PROBLEMS = {  # lengths, heads, head dim, window
    "cuda": {
        "weather 721x1440 H16 D48 w31": ((721, 1440), 16, 48, 31),
        "128x256 H8 D64 w13": ((128, 256), 8, 64, 13),
    },
    "cpu": {"64x128 H4 D64 w13": ((64, 128), 4, 64, 13), "48x96 H4 D48 w31": ((48, 96), 4, 48, 31)},
}


def timed(call, cuda: bool, seconds: float) -> float:
    """Milliseconds, the median."""
    for _ in range(3):
        call()
    samples, begun = [], time.monotonic()
    while len(samples) < 5 or (time.monotonic() - begun < seconds and len(samples) < 50):
        if cuda:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            torch.cuda.synchronize()
            samples.append(start.elapsed_time(stop))
        else:
            before = time.perf_counter()
            call()
            samples.append(1e3 * (time.perf_counter() - before))
    return median(samples)


def main() -> int:
    """Check, time, print, and write."""
    path = sys.argv[1] if len(sys.argv) > 1 else None
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    rows = []
    for name, (lengths, heads, dim, window) in PROBLEMS[device].items():
        generator = torch.Generator(device).manual_seed(0)
        q, k, v, above = (
            torch.randn(1, *lengths, heads, dim, generator=generator, device=device, dtype=dtype) for _ in range(4)
        )

        def both(boundary, turn=0, tensors=(q, k, v), above=above, window=window):
            leaves = [t.roll(turn, 2).requires_grad_() if turn else t.detach().requires_grad_() for t in tensors]
            output = na2d(*leaves, window, boundary=("shift", boundary))
            grads = torch.autograd.grad(output, leaves, above.roll(turn, 2) if turn else above)
            return [output.detach(), *grads]

        def forward(boundary, tensors=(q, k, v), window=window):
            with torch.no_grad():
                return na2d(*tensors, window, boundary=("shift", boundary))

        turn = lengths[1] // 3
        allowed = 0.03 if cuda else 1e-4
        for found, true in zip(both("wrap", turn), both("wrap")):
            error = float((found.roll(-turn, 2) - true).abs().max() / true.abs().max())
            if not error < allowed:
                print(f"{name}: wrong, a turned circle differs by {error:.3g}")
                return 1
        for passed, call in (("forward", forward), ("both", both)):
            times = {b: timed(lambda b=b, call=call: call(b), cuda, seconds / 8) for b in ("shift", "wrap")}
            ratio = times["wrap"] / times["shift"]
            rows.append({"problem": name, "pass": passed, **{f"{b}_ms": t for b, t in times.items()}, "ratio": ratio})
            print(f"{name}, {passed}: shift {times['shift']:.3f} ms, wrap {times['wrap']:.3f} ms, {ratio:.3f} times")
    if path is not None:
        with open(path, "w") as file:
            json.dump({"device": torch.cuda.get_device_name() if cuda else "cpu", "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
