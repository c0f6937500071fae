"""Drawing attention weights over the tokens of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vicinal.extras import need
from vicinal.geometry.neighborhood import Neighborhood, PerAxis
from vicinal.geometry.slots import Slots
from vicinal.geometry.window import group_length, window_start, window_stop

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OPACITY = 0.6  # of the map over an image


def plot_attention(
    weights: Tensor,
    query: Sequence[int],
    neighborhood: Neighborhood | PerAxis[int | None],
    image: Any = None,
    *,
    batch: int = 0,
    head: int | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draws where one query of a 2-D map attends to, over the image that the tokens come from.

    Args:
        weights: `[B, X0, X1, H, slots + M]`, as `vicinal.unfused` lays them out; the `M` additional keys, which have no
            place, are left out.
        query: its row and column, in tokens.
        neighborhood: what the weights were computed with, or its window alone.
        image: `[height, width]` or `[height, width, 3]`, a tensor or what matplotlib's `imshow` takes; of any size, it
            is stretched over the tokens.
        batch: the batch element.
        head: the head; None for the mean of all.
        axes: where to draw; None for a new figure, without pyplot (`axes.figure`).

    Returns:
        The axes, in units of tokens; the map is the last of their images.

    Raises:
        MissingExtra: an ImportError: matplotlib, of the extra `plot`, is not installed.
        ValueError: shapes do not fit, or there is no such query, batch element or head.
    """
    need("plot_attention", "matplotlib")
    if not isinstance(weights, Tensor) or weights.ndim != 5:
        raise ValueError(f"weights must be a tensor [B, X0, X1, H, slots], got {_shape(weights)}")
    weights = weights.detach()
    for name, value, count in (("batch", batch, weights.shape[0]), ("head", head or 0, weights.shape[3])):
        if not 0 <= value < count:
            raise ValueError(f"{name} must be from 0 to {count - 1}, got {value}")
    one = weights[batch].mean(-2) if head is None else weights[batch, :, :, head]
    spread = attention_map(one, query, neighborhood).float().cpu()
    return _draw(spread, query, image, axes)


def attention_map(weights: Tensor, query: Sequence[int], neighborhood: Neighborhood | PerAxis[int | None]) -> Tensor:
    """The weights of one query, of all queries' `[X0, X1, slots + M]`, at their keys' places: `[X0, X1]`."""
    lengths = tuple(weights.shape[:-1])
    if len(query) != len(lengths) or not all(0 <= q < n for q, n in zip(query, lengths)):
        raise ValueError(f"query must be a place among tokens of {lengths}, got {query!r}")
    if not isinstance(neighborhood, Neighborhood):
        neighborhood = Neighborhood.of(len(lengths), neighborhood)
    slots = Slots(neighborhood.resolve(lengths), lengths)
    if weights.shape[-1] < slots.count:
        raise ValueError(f"weights must have at least {slots.count} slots, got {weights.shape[-1]}")
    places = []
    for axis, n, q in zip(slots.neighborhood.axes, lengths, query):
        own, group = divmod(q, axis.dilation)
        length = group_length(n, axis.dilation, group)
        keys = range(window_start(axis, length, own), window_stop(axis, length, own))
        tokens = [group + axis.dilation * key for key in keys]
        places.append(torch.tensor(tokens, dtype=torch.int64, device=weights.device))
    window = weights[tuple(query)][: slots.count].reshape(slots.window)
    spread = weights.new_zeros(lengths)
    spread[torch.meshgrid(*places, indexing="ij")] = window[tuple(slice(len(p)) for p in places)]
    return spread


def _draw(spread: Tensor, query: Sequence[int], image: Any, axes: Axes | None) -> Axes:
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(layout="constrained").subplots()
    height, width = spread.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if image is not None:
        axes.imshow(image.detach().cpu().numpy() if isinstance(image, Tensor) else image, cmap="gray", extent=extent)
    axes.imshow(spread.numpy(), cmap="viridis", extent=extent, alpha=1.0 if image is None else OPACITY)
    axes.plot(query[1], query[0], "x", color="white", markeredgewidth=2)
    axes.set_axis_off()
    return axes


def _shape(value: Any) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
