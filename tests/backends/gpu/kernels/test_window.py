"""The Triton window rule against `vicinal.geometry`, exhaustively on small axes."""

from itertools import product

import pytest
import torch
import triton
import triton.language as tl

from vicinal.backends.gpu.arguments import axes_of
from vicinal.backends.gpu.kernels import window as kernels
from vicinal.backends.gpu.kernels.boxes import rows_of
from vicinal.backends.gpu.kernels.memory import token_rows
from vicinal.geometry import window
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.geometry.unfold import tile_count

MODES = {0: ("shift", False), 1: ("clip", False), 2: ("shift", True)}
BLOCK = 1 << 10
device = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def evaluate(positions, lengths, windows, strides, modes, results, total,
             STRIDED: tl.constexpr, MODED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    case = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = case < total
    position = tl.load(positions + case, mask=valid, other=0)
    length = tl.load(lengths + case, mask=valid, other=1)
    size = tl.load(windows + case, mask=valid, other=1)
    stride = tl.load(strides + case, mask=valid, other=1)
    mode = tl.load(modes + case, mask=valid, other=0)
    start = kernels.window_start(position, length, size, stride, mode, STRIDED, MODED)
    stop = kernels.window_stop(position, length, size, stride, mode, STRIDED, MODED)
    starting = kernels.first_query_starting_at(position, length, size, stride, mode, STRIDED, MODED)
    stopping = kernels.first_query_stopping_after(position, length, size, stride, mode, STRIDED, MODED)
    tl.store(results + case, start, mask=valid)
    tl.store(results + total + case, stop, mask=valid)
    tl.store(results + 2 * total + case, starting, mask=valid)
    tl.store(results + 3 * total + case, stopping, mask=valid)


def cases(strided: bool, moded: bool) -> list[tuple[int, int, int, int, int]]:
    found = []
    for mode, length in product(MODES if moded else [0], range(1, 12)):
        for size in range(1, length + (1 if mode == 0 else 4)):
            for stride in range(1, (size if strided else 1) + 1):
                found += [(i, length, size, stride, mode) for i in range(length)]
    return found


@pytest.mark.parametrize("moded", [False, True])
@pytest.mark.parametrize("strided", [False, True])
def test_rule_is_the_geometrys(strided, moded):
    listed = cases(strided, moded)
    columns = torch.tensor(listed, dtype=torch.int32, device=device).T.contiguous()
    results = torch.full((4, len(listed)), -1, dtype=torch.int32, device=device)
    evaluate[(triton.cdiv(len(listed), BLOCK),)](*columns, results, len(listed), strided, moded, BLOCK)

    expected = []
    for i, length, size, stride, mode in listed:
        boundary, causal = MODES[mode]
        axis = Axis(size, stride, 1, causal, boundary)
        expected.append(
            (
                window.window_start(axis, length, i),
                window.window_stop(axis, length, i),
                window.first_query_starting_at(axis, length, i),
                window.first_query_stopping_after(axis, length, i),
            )
        )
    wrong = (results.T.cpu() != torch.tensor(expected)).any(1).nonzero().flatten().tolist()
    assert not wrong, [(listed[n], results.T[n].tolist(), expected[n]) for n in wrong[:5]]


@triton.jit
def count_tokens(counts, axes, TILE: tl.constexpr, FLAGS: tl.constexpr):
    tile = kernels.tile_of(tl.program_id(0), axes, TILE, FLAGS)
    rows = rows_of(tile, axes, TILE, FLAGS, False)
    numbers = token_rows(0, kernels.tokens_at(rows.positions, tile.group, axes.dilations), axes.lengths, 1, 0)
    tl.atomic_add(counts + numbers, 1, mask=rows.inside & (not tile.beyond))


@pytest.mark.parametrize(
    ("lengths", "dilation", "tile", "unfolded"),
    [
        ((11,), (1,), (4,), None),
        ((11,), (3,), (2,), None),
        ((5, 7), (1, 1), (2, 4), None),
        ((5, 7), (2, 3), (2, 2), None),
        ((3, 4, 6), (1, 1, 1), (2, 2, 4), None),
        ((3, 4, 6), (1, 2, 4), (2, 1, 1), None),
        ((11,), (3,), (2, 2), 0),
        ((12,), (4,), (2, 8), 0),
        ((5,), (8,), (2, 4), 0),
        ((5, 7), (2, 3), (2, 2, 2), 0),
        ((5, 7), (2, 3), (2, 2, 2), 1),
    ],
)
def test_programs_meet_every_token_once(lengths, dilation, tile, unfolded):
    neighborhood = Neighborhood(tuple(Axis(1, 1, d) for d in dilation))
    programs = tile_count(neighborhood, lengths, tile, unfolded)
    flags = kernels.Flags(
        False, max(dilation) > 1, False, False, True, unfolded=-1 if unfolded is None else unfolded + 1
    )
    spare = 3
    counts = torch.zeros(lengths, dtype=torch.int32, device=device)
    count_tokens[(programs + spare,)](counts, axes_of(neighborhood, lengths, unfolded), tile, flags)
    assert (counts == 1).all()


@triton.jit
def covering(results, start, stop, length, TILE: tl.constexpr):
    tl.store(results, kernels.box_start(start, stop, 0, length, TILE))


@pytest.mark.parametrize("interval", [(0, 3), (2, 9), (5, 11), (0, 11), (9, 11), (3, 4)])
@pytest.mark.parametrize("tile", [1, 2, 4, 8, 16])
def test_tiles_cover_the_box_within_the_axis(interval, tile):
    (start, stop), length = interval, 11
    result = torch.full((1,), -1, dtype=torch.int32, device=device)
    covering[(1,)](result, start, stop, length, tile)
    first = result.item()
    reach = triton.cdiv(stop - start, tile) * tile
    assert 0 <= first <= start
    assert first + reach >= stop
    assert first + reach <= length or (first == 0 and reach > length)
