"""Drawing neighborhoods: a query, its keys, and the key box of its query tile; in the terminal and as an image.

1-D tokens are a strip (or, as a matrix, one row for every query), 2-D tokens a plane, 3-D tokens one plane per
position of the first axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from vicinal.geometry.grid import key_at
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.span import Interval
from vicinal.geometry.tiles import key_interval
from vicinal.geometry.window import group_length, leader, window_start, window_stop
from vicinal.words import by

if TYPE_CHECKING:
    from rich.console import Console

Place = tuple[int, ...]
MARGIN = 3  # tokens shown around what matters, where an axis is too long to show whole
MAX_SHOWN = 64
LABEL = 5  # columns of a row's number


class Mark(IntEnum):
    """What a token is to the query, or to a rank that holds a shard."""

    OTHER = 0
    BOX = 1
    KEY = 2
    TILE = 3
    LEADER = 4
    QUERY = 5
    MASKED = 6
    INSIDE = 7  # this and those below: of a rank's shard of a map
    BORDER = 8
    HALO = 9


@dataclass(frozen=True)
class _Style:
    letter: str
    terminal: str
    color: str
    words: str


STYLES: dict[Mark, _Style] = {
    Mark.OTHER: _Style(".", "bright_black", "#f1f3f4", "not read"),
    Mark.BOX: _Style("-", "black on grey74", "#c4ccd3", "key box of the query tile: read, masked for this query"),
    Mark.KEY: _Style("#", "black on dark_turquoise", "#26a69a", "neighbor: a key of this query"),
    Mark.TILE: _Style("t", "black on light_salmon1", "#ffcc80", "another query of the same tile (a neighbor too)"),
    Mark.LEADER: _Style(
        "L", "black on gold1", "#f9a825", "leader: the query whose window this one has (a neighbor too)"
    ),
    Mark.QUERY: _Style("Q", "bold white on red3", "#d84315", "the query"),
    Mark.MASKED: _Style("x", "white on grey37", "#5f6368", "masked: no query attends to it"),
    Mark.INSIDE: _Style("o", "black on dark_turquoise", "#26a69a", "the rank's own: needs no halo, computed meanwhile"),
    Mark.BORDER: _Style("b", "black on light_salmon1", "#ffcc80", "the rank's own: its window reaches into the halo"),
    Mark.HALO: _Style("h", "black on plum3", "#b39ddb", "halo: keys and values that other ranks send"),
}
OF_A_QUERY = (Mark.MASKED, Mark.QUERY, Mark.LEADER, Mark.TILE, Mark.KEY, Mark.BOX, Mark.OTHER)
OF_A_SHARD = (Mark.INSIDE, Mark.BORDER, Mark.HALO, Mark.OTHER)


@dataclass(frozen=True)
class Picture:
    """The marks of all tokens for one query, or for one rank's shard.

    Attributes:
        lengths: tokens along each axis.
        kinds: the marks that there may be.
        marks: of the tokens that are not OTHER.
        view: the part worth showing, one interval per axis.
    """

    lengths: tuple[int, ...]
    kinds: tuple[Mark, ...]
    marks: dict[Place, Mark]
    view: tuple[Interval, ...]

    def mark(self, token: Place) -> Mark:
        return self.marks.get(token, Mark.OTHER)


def picture(
    neighborhood: Neighborhood,
    lengths: tuple[int, ...],
    query: Place,
    tile: tuple[int, ...],
    masked: Sequence[Interval] = (),
    size: int | None = None,
) -> Picture:
    """Mark every token for `query`, in tiles of `tile` queries (in units of the dilation).

    Args:
        neighborhood: resolved for `lengths`.
        lengths, query, tile: one value per axis.
        masked: a box of masked tokens, one interval per axis; none where it is empty.
        size: of the query's own window, odd; the box is that of the neighborhood's.

    Raises:
        ValueError: the query is not among the tokens, a tile is below 1, a rank does not match, or a size is even.
    """
    if size is not None and (size < 1 or size % 2 == 0):
        raise ValueError(f"size must be odd and at least 1, got {size}")
    for name, value in (("query", query), ("tile", tile)):
        if len(value) != len(lengths):
            raise ValueError(f"{name} must have {len(lengths)} values, one per axis, got {len(value)}")
    for a, (x, n) in enumerate(zip(query, lengths)):
        if not 0 <= x < n:
            raise ValueError(f"query must lie in [0, {n}) on axis {a}, got {x}")
    if min(tile) < 1:
        raise ValueError(f"tile must be at least 1 on every axis, got {tile}")
    lines = [_line(*each, size) for each in zip(neighborhood.axes, lengths, query, tile)]
    marks: dict[Place, Mark] = {}
    for mark, part in ((Mark.BOX, "box"), (Mark.KEY, "keys"), (Mark.TILE, "tile")):
        for token in product(*(getattr(line, part) for line in lines)):
            # A query of the tile that this one does not attend to (causal, strided) stays part of the box.
            if mark is not Mark.TILE or marks.get(token) is Mark.KEY:
                marks[token] = mark
    leads = tuple(line.leader for line in lines)
    if neighborhood.stride != (1,) * neighborhood.rank and leads in marks and marks[leads] is not Mark.BOX:
        marks[leads] = Mark.LEADER
    if masked:
        marks |= dict.fromkeys(product(*(range(*own) for own in masked)), Mark.MASKED)
    marks[query] = Mark.QUERY
    view = tuple(_view(line, n) for line, n in zip(lines, lengths))
    return Picture(lengths, OF_A_QUERY, marks, view)


def shard_picture(neighborhood: Neighborhood, lengths: tuple[int, ...], parts: tuple[int, ...], rank: int) -> Picture:
    """Mark what a rank holds and needs of a map that is cut into `parts` along each axis, as `torch.chunk` cuts.

    Args:
        neighborhood: resolved for `lengths`.
        rank: of the parts in row-major order.

    Raises:
        ValueError: there is no such rank, or it holds nothing.
    """
    from vicinal.distributed.halo import halo, shards_of

    shards = shards_of(lengths, parts)
    if not 0 <= rank < len(shards):
        raise ValueError(f"rank must be from 0 to {len(shards) - 1}, got {rank}")
    plan = halo((neighborhood,), lengths, shards)
    marks: dict[Place, Mark] = {}
    for pieces in plan.receives(rank):
        marks |= {token: Mark.HALO for piece in pieces for token in product(*(range(*own) for own in piece.box))}
    if plan.keys(rank) is None:
        raise ValueError(f"rank {rank} holds no token of {by(lengths)} in {by(parts)} parts")
    own, inside = plan.shards[rank], plan.inside(rank)
    marks |= dict.fromkeys(product(*(range(*each) for each in own)), Mark.BORDER)
    if inside is not None:
        marks |= dict.fromkeys(product(*(range(*each) for each in inside)), Mark.INSIDE)
    view = []
    for axis, n in enumerate(lengths):
        places = [token[axis] for token in marks]
        near = max(0, min(places) - MARGIN), min(n, max(places) + 1 + MARGIN)
        view.append((0, n) if n <= MAX_SHOWN else near)
    return Picture(lengths, OF_A_SHARD, marks, tuple(view))


def print_picture(console: Console, shown: Picture) -> None:
    """Draw in the terminal: one letter and colour per token, planes below each other."""
    for plane in _planes(shown):
        if len(shown.lengths) == 3:
            console.print(f"axis 0 at {plane[0]}", highlight=False)
        rows = range(*shown.view[-2]) if len(shown.lengths) > 1 else range(1)
        for row in rows:
            text = Text(f"{row:4d} " if len(shown.lengths) > 1 else "     ")
            marks = [shown.mark(_token(shown, plane, row, column)) for column in range(*shown.view[-1])]
            _print_row(console, text, marks)
    _print_note(console, shown)
    start, stop = shown.view[-1]
    _print_width(console, stop - start)
    for mark in shown.kinds:
        if mark in (Mark.LEADER, Mark.MASKED) and mark not in shown.marks.values():
            continue  # of strides, and of masks, alone
        style = STYLES[mark]
        console.print(Text.assemble((f" {style.letter} ", style.terminal), f" {style.words}"))


def print_matrix(console: Console, rows: Sequence[Sequence[Mark]]) -> None:
    """Draw all windows of a 1-D neighborhood: a row per query, a column per key."""
    for query, row in enumerate(rows):
        _print_row(console, Text(f"{query:4d} "), row)
    _print_width(console, len(rows[0]))


def matrix(neighborhood: Neighborhood, length: int, queries: int | None = None) -> list[list[Mark]]:
    """The marks of every key (column) for every query (row) of a 1-D neighborhood, with no tile.

    `queries`: how many there are, on a grid of their own; None for that of the keys.

    Raises:
        ValueError: there is more than one axis, or more than 64 tokens.
    """
    if neighborhood.rank != 1:
        raise ValueError(f"matrix needs one axis, got {neighborhood.rank}")
    queries = length if queries is None else queries
    if max(length, queries) > MAX_SHOWN:
        raise ValueError(f"matrix shows up to {MAX_SHOWN} tokens, got {max(length, queries)}")
    at = (key_at(query, queries, length) for query in range(queries))
    rows = [picture(neighborhood, (length,), (key,), (1,)) for key in at]
    return [[row.mark((key,)) for key in range(length)] for row in rows]


def lines_matrix(neighborhoods: Sequence[Neighborhood], lengths: Sequence[int]) -> list[list[Mark]]:
    """`matrix` of lines packed one after the other, each with its own borders."""
    rows, total, start = [], sum(lengths), 0
    for neighborhood, length in zip(neighborhoods, lengths):
        before, after = [Mark.OTHER] * start, [Mark.OTHER] * (total - start - length)
        rows += [[*before, *row, *after] for row in matrix(neighborhood, length)]
        start += length
    return rows


def save_picture(shown: Picture, path: Path, title: str = "") -> None:
    """Draw into an image file: planes side by side."""
    planes = list(_planes(shown))
    rows = range(*shown.view[-2]) if len(shown.lengths) > 1 else range(1)
    columns = range(*shown.view[-1])
    cells = [[[shown.mark(_token(shown, p, r, c)) for c in columns] for r in rows] for p in planes]
    names = [f"axis 0 at {p[0]}" if p else title for p in planes]
    _save(cells, names, (rows[0], columns[0]), path, title if len(shown.lengths) == 3 else "")


def save_matrix(rows: Sequence[Sequence[Mark]], path: Path, title: str = "") -> None:
    """`matrix` as an image file."""
    _save([rows], [title], (0, 0), path, "")


@dataclass(frozen=True)
class _Line:
    keys: list[int]
    tile: list[int]
    box: list[int]
    leader: int


def _line(axis: Axis, length: int, query: int, tile: int, size: int | None = None) -> _Line:
    """One axis: the query's keys, its tile and the tile's key box, as token positions."""
    assert axis.window is not None
    offset, place = query % axis.dilation, query // axis.dilation
    group = group_length(length, axis.dilation, offset)
    first = place // tile * tile
    queries = (first, min(first + tile, group))

    def tokens(start: int, stop: int) -> list[int]:  # around a circle, on from the other side
        return [(offset + axis.dilation * i) % length for i in range(start, stop)]

    sized = axis if size is None else replace(axis, window=min(size, axis.window))
    window = window_start(sized, group, place), window_stop(sized, group, place)
    own = offset + axis.dilation * leader(axis, group, place)
    return _Line(tokens(*window), tokens(*queries), tokens(*key_interval(axis, group, queries)), own)


def _view(line: _Line, length: int) -> Interval:
    if length <= MAX_SHOWN:
        return 0, length
    every = line.box + line.tile
    return max(0, min(every) - MARGIN), min(length, max(every) + 1 + MARGIN)


def _planes(shown: Picture) -> list[Place]:
    """Positions of the first axis of 3-D tokens that have something to show; one empty position otherwise."""
    if len(shown.lengths) < 3:
        return [()]
    return [(x,) for x in range(*shown.view[0]) if any(token[0] == x for token in shown.marks)]


def _token(shown: Picture, plane: Place, row: int, column: int) -> Place:
    return (column,) if len(shown.lengths) == 1 else (*plane, row, column)


def _print_note(console: Console, shown: Picture) -> None:
    parts = [
        f"axis {a}: {start} to {stop - 1} of {n}"
        for a, ((start, stop), n) in enumerate(zip(shown.view, shown.lengths))
        if (start, stop) != (0, n)
    ]
    if parts:
        console.print("shown: " + ", ".join(parts), highlight=False)


def _print_row(console: Console, text: Text, marks: Sequence[Mark]) -> None:
    """A row of marks behind `text`: cut at a terminal's edge, whole in a file or a pipe."""
    for mark in marks:
        text.append(f"{STYLES[mark].letter} ", style=STYLES[mark].terminal)
    if console.is_terminal:
        text.truncate(console.width, overflow="crop")
    console.print(text, soft_wrap=True)


def _print_width(console: Console, columns: int) -> None:
    """Say where rows of so many marks were cut."""
    width = LABEL + 2 * columns - 1
    if console.is_terminal and width > console.width:
        console.print(f"cut at {console.width} of {width} columns; --png FILE draws it whole", highlight=False)


def _save(
    cells: Sequence[Sequence[Sequence[Mark]]], names: list[str], first: tuple[int, int], path: Path, title: str
) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height, width = len(cells[0]), len(cells[0][0])
    across = min(len(cells), 4)
    down = -(-len(cells) // across)
    side = min(0.28, 7 / max(width, height))  # inches per token
    has_masked = any(Mark.MASKED in row for plane in cells for row in plane)
    named = OF_A_QUERY if has_masked else OF_A_QUERY[1:]
    legend = 0.23 * len(named) + 0.2
    size = (max(4.5, across * (width * side + 0.7)), down * (height * side + 0.7) + legend)
    figure = Figure(figsize=size, layout="constrained")
    panels: Any = figure.subplots(down, across, squeeze=False).flatten()
    colors = ListedColormap([STYLES[mark].color for mark in Mark])
    for panel in panels[len(cells) :]:
        panel.remove()
    for panel, plane, name in zip(panels, cells, names):
        panel.pcolormesh(
            [first[1] - 0.5 + x for x in range(width + 1)],
            [first[0] - 0.5 + y for y in range(height + 1)],
            [[int(mark) for mark in row] for row in plane],
            cmap=colors,
            vmin=-0.5,
            vmax=len(Mark) - 0.5,
            edgecolors="white",
            linewidth=0.6,
        )
        panel.invert_yaxis()
        panel.set_aspect("equal")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7, length=2)
        for spine in panel.spines.values():
            spine.set_visible(False)
        if height == 1:
            panel.set_yticks([])
    present = {mark for plane in cells for row in plane for mark in row}
    handles = [Patch(color=STYLES[m].color, label=STYLES[m].words) for m in reversed(Mark) if m in present]
    figure.legend(handles=handles, loc="outside lower center", fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same bytes for the same picture
