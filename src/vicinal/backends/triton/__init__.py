"""The portable GPU backend: fused neighborhood attention in Triton, forward and backward, for NVIDIA and AMD.

Inputs are read in place at any strides, except that a last dimension that is not contiguous is copied first, as is what
comes from above where it is not contiguous. Forward allocates its results, and bias tiles (at most 64 MiB) where tiles
share them; under a key mask lists, of at most 8 kB a tile. Backward allocates, besides its results, delta
(`[B, *X, H]`, float32) and, where the problem has them: bias tiles and lists for each kernel; partial sums for the
gradients of additional keys and values and of the bias table; one float32 gradient of key and value per query head when
heads have neighborhoods of their own and share key heads. Nothing is computed that is not wanted. Nothing is atomic:
the same bits every run. Nothing waits for the device.

NaN or inf in a tensor or an upstream gradient may spread within a tile: to queries or keys nearby, and where dilation
groups are so short that a tile holds several, to those. It never leaves its batch element and head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from vicinal.backends.gpu import hardware
from vicinal.backends.gpu.arguments import placed, precision_of
from vicinal.backends.gpu.devices import capability
from vicinal.backends.gpu.launch import MAX_GRID
from vicinal.backends.gpu.run import without_memory
from vicinal.backends.gpu.strides import dense
from vicinal.backends.protocol import Backend, Described, Direction
from vicinal.backends.triton import lines
from vicinal.backends.triton.config import GradientTilings, Tiling, of_settings
from vicinal.backends.triton.estimate import seconds
from vicinal.backends.triton.forward import Forward
from vicinal.backends.triton.launch import Prepared, readable, tiles_of
from vicinal.backends.triton.tilings import best, is_valid, tilings
from vicinal.caching import Cache
from vicinal.compiling import Job
from vicinal.problem import Inputs, PackedProblem, Problem, Upstream, Wanted

if TYPE_CHECKING:  # kernels take a tenth of a second to import: those of backward passes and packed maps when needed
    from vicinal.backends.triton.backward import Backward

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256
MAX_TOKENS = 2**30  # room for a tile beyond the end of an axis
MAX_CACHED = 4096  # prepared launches of each pass, some kilobytes of host memory each

_interpreting = False


@contextmanager
def interpreting() -> Iterator[None]:
    """Within it the backend takes CPU tensors; for tests, where TRITON_INTERPRET=1 was set before the import."""
    global _interpreting
    before, _interpreting = _interpreting, True
    try:
        yield
    finally:
        _interpreting = before


class TritonBackend(Backend[Any]):
    """See `vicinal.backends.protocol.Backend`."""

    name = "triton"

    def __init__(self) -> None:
        self._forward: Cache[Forward] = Cache(entries=MAX_CACHED)
        self._backward: Cache[Backward] = Cache(entries=MAX_CACHED)

    def unsupported(self, problem: Problem) -> str | None:
        if problem.device.type == "cpu":
            if hardware.named is not None:
                pass
            elif not _interpreting:
                return "tensors are on the CPU"
            elif problem.dtype == torch.bfloat16:
                return "Triton's interpreter cannot multiply bfloat16"
        elif problem.device.type != "cuda":
            return f"tensors are on device {problem.device.type!r}, not on a CUDA or ROCm GPU"
        elif (found := capability(problem.device)) is not None and found < (8, 0):
            return "the GPU's compute capability is below 8.0"
        if problem.dtype not in DTYPES:
            return f"dtype {problem.dtype} is not float16, bfloat16 or float32"
        if max(problem.head_dim, problem.value_dim) > MAX_HEAD_DIM:
            return f"head_dim and value_dim must be at most {MAX_HEAD_DIM}"
        if problem.has_rpb and len({n.window for n in problem.neighborhoods}) > 1:
            return "a relative positional bias needs the same kernel_size in every head"
        return _too_large(problem)

    def seconds(self, problem: Problem, direction: Direction, config: Tiling | GradientTilings) -> float:
        return seconds(problem, direction, config)

    def best(self, problem: Problem, direction: Direction) -> tuple[Tiling | GradientTilings, float]:
        return best(problem, direction)

    def configured(
        self, problem: Problem, direction: Direction, given: Mapping[str, Any]
    ) -> Tiling | GradientTilings | None:
        try:
            config = of_settings(given)
        except (KeyError, TypeError, ValueError):
            return None
        return config if is_valid(problem, direction, config) else None

    def configs(self, problem: Problem, direction: Direction) -> Sequence[Tiling] | Sequence[GradientTilings]:
        return tilings(problem, direction)

    def described(self, problem: Problem, direction: Direction, config: Tiling | GradientTilings) -> Described:
        if isinstance(config, Tiling) and config.of_classes and lines.has_lines(problem):
            return lines.described(problem, config)
        return super().described(problem, direction, config)

    def forward(self, problem: Problem, config: Tiling, inputs: Inputs) -> tuple[Tensor, Tensor]:
        # Every microsecond here is one of each eager call's: look up, allocate, launch.
        return self._forward.get(_key(problem, config, inputs), lambda: Forward.of(problem, config, inputs))(inputs)

    def backward(
        self,
        problem: Problem,
        config: GradientTilings,
        inputs: Inputs,
        upstream: Upstream,
        wanted: Wanted,
    ) -> Inputs:
        if upstream.lse.numel() == 0:
            zeros = (t.new_zeros(t.shape) if wants and t is not None else None for t, wants in zip(inputs, wanted))
            return Inputs(*zeros)  # type: ignore[arg-type]
        from vicinal.backends.triton.backward import Backward

        inputs = readable(inputs)
        upstream = Upstream(*(None if t is None else dense(t) for t in upstream))  # type: ignore[arg-type]
        key = (upstream.grad_lse is None, wanted, *_key(problem, config, inputs))
        launch = self._backward.get(key, lambda: Backward(Prepared.of(problem, inputs), config, wanted))
        return launch(inputs, upstream)

    def forward_maps(self, problem: PackedProblem, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Of maps of different sizes, one launch: output `[total, H, Dv]`, log-sum-exp `[total, H]`."""
        from vicinal.backends.triton import packed

        return packed.forward(problem, inputs)

    def backward_maps(self, problem: PackedProblem, inputs: Inputs, upstream: Upstream, wanted: Wanted) -> Inputs:
        """Likewise the gradients of query, key and value that are wanted."""
        from vicinal.backends.triton import packed

        return packed.backward(problem, inputs, upstream, wanted)

    def forward_kernels(self, problem: Problem, config: Tiling, inputs: Inputs) -> Sequence[Job]:
        inputs = without_memory(inputs)
        return Forward.of(problem, config, inputs).kernels(readable(inputs))

    def backward_kernels(
        self, problem: Problem, config: GradientTilings, inputs: Inputs, wanted: Wanted
    ) -> Sequence[Job]:
        from vicinal.backends.triton.backward import Backward

        if problem.batch == 0:
            return ()
        inputs = readable(without_memory(inputs))
        return Backward(Prepared.of(problem, inputs), config, wanted).kernels(inputs)


def _too_large(problem: Problem) -> str | None:
    """What kernels would not count in 32 bits."""
    tokens = max(prod(problem.lengths), prod(problem.key_lengths))
    if tokens > MAX_TOKENS:
        return f"a batch element has {tokens} tokens, more than 2**30"
    if problem.is_part and max(s.length for s in placed(problem.neighborhoods, problem.lengths)) > MAX_TOKENS:
        return "an axis has more than 2**30 tokens"
    if any(stride > MAX_TOKENS for n in problem.neighborhoods for stride in n.stride):
        return "a stride exceeds 2**30"
    if problem.has_rpb and (problem.heads > MAX_GRID[1] or _table_size(problem) > MAX_GRID[0]):
        return f"a relative positional bias of {problem.heads} heads is too large"
    rows = problem.batch * problem.heads
    longest = tuple(map(max, problem.lengths, problem.key_lengths))
    most = max(prod(map(max, longest, n.dilation)) for n in set(problem.neighborhoods))
    if rows * most <= MAX_GRID[0]:  # even if every tile were a token: nearly always so, and no tiling is chosen
        return None
    (forward, _), (backward, _) = (best(problem, direction) for direction in get_args(Direction))
    assert isinstance(forward, Tiling)
    assert isinstance(backward, GradientTilings)
    own = max(tiles_of(problem, tiling) for tiling in (forward, backward.query))
    if rows * max(own, tiles_of(problem, backward.key_value, inverse=True)) > MAX_GRID[0]:
        return "more tiles than a GPU's grid can hold"
    return None


def _table_size(problem: Problem) -> int:
    """Of one head's bias table."""
    return prod(2 * k - 1 for k in problem.neighborhoods[0].window if k is not None)


def _key(problem: Problem, config: Tiling | GradientTilings, inputs: Inputs) -> tuple[object, ...]:
    """What a prepared launch depends on."""
    query, key, value, extra_keys, extra_values = inputs[:5]
    found: tuple[object, ...] = (problem, config, query.stride(), key.stride(), value.stride())
    found += (query.is_neg(), key.is_neg(), value.is_neg())
    if extra_keys is not None and extra_values is not None:
        found += (extra_keys.stride(), extra_values.stride(), extra_keys.is_neg(), extra_values.is_neg())
    return (*found, precision_of(problem.dtype)) if problem.dtype == torch.float32 else found


BACKEND = TritonBackend()
