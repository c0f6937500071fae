"""What the public functions have in common: arguments read, knobs ignored, and the call sent on its way.

Small problems are bound by the host, so what an eager call passes through here is short.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from vicinal import torch_internals
from vicinal.autocast import autocast, autocast_dtype
from vicinal.checks import SIZES, check_scale, check_sizes, check_switch, check_tensor
from vicinal.geometry.neighborhood import Neighborhood, per_axis
from vicinal.grids import Grid
from vicinal.problem import Inputs
from vicinal.routing import route
from vicinal.warning import warn


def attend(
    inputs: Inputs,
    neighborhoods: tuple[Neighborhood, ...],
    scale: float | None,
    return_lse: bool,
    backend: str | None,
    clamp: bool = False,
) -> Any:
    """Neighborhood attention as `vicinal.neighborhood_attention` documents it: the output, or it and its log-sum-exp.

    Raises:
        TypeError, ValueError: see `vicinal.checks.check_call`; ValueError also where the backend cannot run it.
    """
    if return_lse is not False:
        check_switch("return_lse", return_lse)
    if scale is not None:
        scale = check_scale("scale", scale)
    if inputs.window_sizes is not None:
        inputs = _sized(inputs, neighborhoods)
    grid = Grid.of(inputs, neighborhoods)
    if grid is not None:
        inputs, neighborhoods = grid.spread(inputs), grid.neighborhoods(neighborhoods, inputs.key.shape[-2])
    if clamp is not False:
        check_switch("clamp", clamp)
        inputs, neighborhoods = clamped(inputs, neighborhoods)
    mask, key = inputs.key_mask, inputs.key
    if isinstance(mask, Tensor) and isinstance(key, Tensor) and mask.shape == key.shape[1:-2]:
        inputs = inputs._replace(key_mask=mask.expand(key.shape[0], *mask.shape))
    cast = autocast(inputs)
    output, lse = route(inputs if cast is inputs else Inputs(*cast), neighborhoods, scale, backend)
    if grid is not None:
        kv_heads = inputs.key.shape[-2]
        output, lse = grid.gather(output, kv_heads), grid.gather(lse[..., None], kv_heads).squeeze(-1)
    return (output, lse) if return_lse else output


def _sized(inputs: Inputs, neighborhoods: tuple[Neighborhood, ...]) -> Inputs:
    """With window sizes for every head, whose values are right; what is wrong otherwise is refused later."""
    sizes, query, key = inputs.window_sizes, inputs.query, inputs.key
    if not all(isinstance(t, Tensor) and not t.is_nested for t in (sizes, query, key)):
        return inputs
    assert sizes is not None
    if sizes.shape == query.shape[:-2]:
        sizes = sizes[..., None].expand(query.shape[:-1])
    plain = type(sizes) is Tensor and not sizes.is_meta and not torch.compiler.is_compiling()
    if plain and sizes.dtype in SIZES and not (torch_internals.in_transform() or torch_internals.in_dispatch_mode()):
        windows = [k or n for each in neighborhoods for k, n in zip(each.window, key.shape[1:-2])]
        check_sizes(sizes, max(windows))
    return inputs._replace(window_sizes=sizes)


def clamped(inputs: Inputs, neighborhoods: tuple[Neighborhood, ...]) -> tuple[Inputs, tuple[Neighborhood, ...]]:
    """With the largest windows that fit the tokens (`Axis.clamp`), and of the bias table the middle, which is theirs.

    What is wrong otherwise stays so, and is refused where calls are checked.
    """
    query, rpb = inputs.query, inputs.rpb
    if (
        not isinstance(query, Tensor)
        or query.is_nested
        or any(not isinstance(n, Neighborhood) or n.rank != query.ndim - 3 for n in neighborhoods)
    ):
        return inputs, neighborhoods
    lengths = torch_internals.shape_of(query)[1:-2]
    fitting = tuple(n.clamp(lengths) for n in neighborhoods)
    if isinstance(rpb, Tensor) and rpb.ndim == len(lengths) + 1:
        inputs = inputs._replace(rpb=_middle(rpb, neighborhoods[0].window, fitting[0].window))
    return inputs, fitting


def _middle(rpb: Tensor, full: tuple[int | None, ...], window: tuple[int | None, ...]) -> Tensor:
    """Of a table of relative positions, of `full` windows, those of smaller ones."""
    for axis, (own, k) in enumerate(zip(full, window), 1):
        if own is not None and k is not None and k < own and rpb.shape[axis] == 2 * own - 1:
            rpb = rpb.narrow(axis, own - k, 2 * k - 1)
    return rpb


def check_input(x: Tensor, rank: int, channels: int, projection: nn.Module) -> None:
    """That a module's input is `[batch, *lengths, channels]` of its projection's dtype.

    Raises:
        TypeError, ValueError: see `vicinal.nn.NeighborhoodAttention.forward`.
    """
    check_tensor("x", x)
    if x.ndim != rank + 2 or x.shape[-1] != channels:
        raise ValueError(
            f"x must have {rank + 2} dimensions [batch, {rank} spatial lengths, {channels}], got shape {list(x.shape)}"
        )
    if type(projection) is not nn.Linear:  # a layer put in its place has its own rules
        return
    dtype = projection.weight.dtype
    if x.dtype != dtype and autocast_dtype(x.device) is None:
        raise TypeError(f"x must have the parameters' dtype {dtype}, got {x.dtype}")


def windows(kernel_size: Any, most: Any) -> tuple[Any, Tensor | None]:
    """The window that kernels walk, and sizes per token within it: where `kernel_size` is a tensor, and `most` given.

    Raises:
        TypeError: one of the two without the other.
    """
    if isinstance(kernel_size, Tensor):
        if most is None:
            raise TypeError(
                "kernel_size must be an integer or one per axis, got a Tensor; one of sizes per token needs "
                "max_kernel_size too"
            )
        return most, kernel_size
    if most is not None:
        raise TypeError(f"max_kernel_size goes with a kernel_size per token, a Tensor, got {kernel_size!r}")
    return kernel_size, None


def neighborhood(rank: int, *values: Any) -> Neighborhood:
    """`Neighborhood.of(rank, *values)`, made once for the same values in eager calls."""
    if torch.compiler.is_compiling():
        return Neighborhood.of(rank, *values)
    try:
        if _SCALARS.issuperset(map(type, values)):
            return _known_neighborhood(rank, *values)
        each: list[Any] = []
        for value, default in zip(values, _DEFAULTS):
            each += per_axis("", default if value is None else value, rank)
        return _known_neighborhood(rank, *each)
    except (TypeError, ValueError):
        return Neighborhood.of(rank, *values)  # raises again, by the argument's name


_SCALARS = {int, bool, str, type(None)}
_DEFAULTS = (None, 1, 1, False, None)  # of window (the whole axis), stride, dilation, causal; boundary has none


@lru_cache(maxsize=4096, typed=True)  # typed: 3.0 and True are not taken for 3 and 1
def _known_neighborhood(rank: int, *values: Any) -> Neighborhood:
    """From one value of each kind, or from one for every axis of each, flattened: lists cannot be looked up."""
    if len(values) > len(_DEFAULTS):
        values = tuple(values[i : i + rank] for i in range(0, len(values), rank))
    return Neighborhood.of(rank, *values)


class Knobs:
    """Settings of NATTEN's kernels that have no meaning here: accepted, and ignored with one warning.

    Args:
        defaults: the settings' names and their values where nobody sets them.
    """

    def __init__(self, defaults: Mapping[str, object]) -> None:
        self.names = tuple(defaults)
        self.defaults = tuple(defaults.values())

    def ignore(self, *given: object) -> None:
        """Warns, once per set of knobs, at the line that called the public function."""
        if given == self.defaults:
            return
        changed = [name for name, value, default in zip(self.names, given, self.defaults) if value != default]
        names = ", ".join(changed)
        if names not in _warned:
            _warned.add(names)
            warn(f"vicinal ignores {names}: it chooses tiles by itself (see `vicinal explain`)")


_warned: set[str] = set()
