import io
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vicinal.geometry.neighborhood import Neighborhood
from vicinal.reference import neighbors
from vicinal.show import (
    STYLES,
    Mark,
    lines_matrix,
    matrix,
    picture,
    print_matrix,
    print_picture,
    save_matrix,
    save_picture,
    shard_picture,
)

KEYS = {Mark.KEY, Mark.TILE, Mark.LEADER, Mark.QUERY}


def text_of(draw, *args):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    draw(console, *args)
    return console.export_text()


@st.composite
def scenes(draw):
    rank = draw(st.integers(1, 3))
    lengths, axes = [], []
    for _ in range(rank):
        window, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        lengths.append(window * dilation + draw(st.integers(0, 4)))
        axes.append(
            (
                window,
                draw(st.integers(1, window)),
                dilation,
                draw(st.booleans()),
                draw(st.sampled_from(["shift", "clip"])),
            )
        )
    neighborhood = Neighborhood.of(rank, *(tuple(values) for values in zip(*axes, strict=True))).resolve(lengths)
    query = tuple(draw(st.integers(0, n - 1)) for n in lengths)
    tile = tuple(draw(st.integers(1, 4)) for _ in lengths)
    return neighborhood, tuple(lengths), query, tile


@given(scenes())
def test_marked_keys_are_the_neighbors(scene):
    neighborhood, lengths, query, tile = scene
    shown = picture(neighborhood, lengths, query, tile)
    expected = set(product(*map(neighbors, neighborhood.axes, lengths, query)))
    assert {t for t in product(*map(range, lengths)) if shown.mark(t) in KEYS} == expected
    assert shown.mark(query) is Mark.QUERY


@given(scenes())
def test_box_is_the_union_of_the_windows_of_the_tile_per_axis(scene):
    neighborhood, lengths, query, tile = scene
    shown = picture(neighborhood, lengths, query, tile)
    lines = []
    for axis, n, x, size in zip(neighborhood.axes, lengths, query, tile, strict=True):
        group = range(x % axis.dilation, n, axis.dilation)
        first = group.index(x) // size * size
        lines.append(sorted({k for q in group[first : first + size] for k in neighbors(axis, n, q)}))
    assert {t for t in product(*map(range, lengths)) if shown.mark(t) is not Mark.OTHER} == set(product(*lines))


@pytest.mark.parametrize(
    ("lengths", "query", "tile", "words"),
    [
        ((8, 8), (8, 0), (4, 4), r"query must lie in \[0, 8\) on axis 0, got 8"),
        ((8, 8), (0,), (4, 4), "query must have 2 values"),
        ((8, 8), (0, 0), (4,), "tile must have 2 values"),
        ((8, 8), (0, 0), (4, 0), "tile must be at least 1"),
    ],
)
def test_bad_positions_are_errors(lengths, query, tile, words):
    with pytest.raises(ValueError, match=words):
        picture(Neighborhood.of(2, 3).resolve(lengths), lengths, query, tile)


def test_terminal_draws_the_plane():
    shown = picture(Neighborhood.of(2, 3).resolve((4, 5)), (4, 5), (0, 4), (1, 1))
    lines = text_of(print_picture, shown).splitlines()
    assert [line.split()[1:] for line in lines[:4]] == [list("..##Q"), list("..###"), list("..###"), list(".....")]


def test_terminal_draws_slices_of_three_axes():
    shown = picture(Neighborhood.of(3, (2, 3, 3)).resolve((6, 4, 4)), (6, 4, 4), (0, 1, 1), (1, 1, 1))
    text = text_of(print_picture, shown)
    assert "axis 0 at 0" in text
    assert "axis 0 at 1" in text
    assert "axis 0 at 2" not in text


def test_long_axes_are_cropped_and_it_says_so():
    shown = picture(Neighborhood.of(1, 5).resolve((1000,)), (1000,), (500,), (2,))
    text = text_of(print_picture, shown)
    assert "shown: axis 0: 495 to 506 of 1000" in text
    assert text.splitlines()[0].split() == list("...##Qt#-...")


def in_terminal(draw, *args, width):
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    draw(console, *args)
    return console.file.getvalue().splitlines()


def test_what_is_wider_than_the_terminal_is_cut_and_it_says_so():
    shown = picture(Neighborhood.of(1, 3).resolve((30,)), (30,), (0,), (1,))
    lines = in_terminal(print_picture, shown, width=64)
    assert len(lines[0]) <= 64
    assert "cut at 64 of 64 columns" not in lines
    lines = in_terminal(print_picture, shown, width=60)
    assert lines[1] == "cut at 60 of 64 columns; --png FILE draws it whole"
    assert max(map(len, lines)) <= 60
    matrix_lines = in_terminal(print_matrix, matrix(Neighborhood.of(1, 3).resolve((30,)), 30), width=60)
    assert matrix_lines[-1] == lines[1]


def test_a_pipe_has_no_edge():
    console = Console(width=60, file=io.StringIO())
    shown = picture(Neighborhood.of(1, 3).resolve((60,)), (60,), (0,), (1,))
    print_picture(console, shown)
    assert len(console.file.getvalue().splitlines()[0].split()) == 60
    assert "cut at" not in console.file.getvalue()


def test_pictures_are_ascii():
    assert all(style.letter.isascii() for style in STYLES.values())


def test_matrix_has_a_row_per_query():
    neighborhood = Neighborhood.of(1, 3, is_causal=True).resolve((5,))
    rows = [[key for key, mark in enumerate(row) if mark in KEYS] for row in matrix(neighborhood, 5)]
    assert rows == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert len(text_of(print_matrix, matrix(neighborhood, 5)).splitlines()) == 5


@pytest.mark.parametrize(
    ("neighborhood", "length", "words"),
    [(Neighborhood.of(2, 3), 5, "one axis"), (Neighborhood.of(1, 3), 65, "up to 64")],
)
def test_matrix_refuses_what_it_cannot_show(neighborhood, length, words):
    with pytest.raises(ValueError, match=words):
        matrix(neighborhood, length)


@pytest.mark.parametrize("lengths", [(20,), (6, 8), (3, 6, 8)])
def test_image_is_written_and_repeats_bit_by_bit(lengths, tmp_path):
    rank = len(lengths)
    shown = picture(Neighborhood.of(rank, 3).resolve(lengths), lengths, (1,) * rank, (2,) * rank)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        save_picture(shown, path, "title")
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(b"\x89PNG")
    assert first == second


def test_matrix_image_is_written(tmp_path):
    save_matrix(matrix(Neighborhood.of(1, 3).resolve((9,)), 9), tmp_path / "a.png", "title")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("query", "leader", "stride"), [(3, 4, 3), (4, None, 3), (5, 4, 3), (3, None, 1)])
def test_the_leader_is_the_query_whose_window_is_shared(query, leader, stride):
    """It is not marked on itself."""
    marks = picture(Neighborhood.of(1, 5, stride), (12,), (query,), (1,)).marks
    assert [token for token, mark in marks.items() if mark is Mark.LEADER] == [(leader,)] * (leader is not None)


def test_masked_tokens_are_marked():
    shown = picture(Neighborhood.of(2, 3).resolve((4, 5)), (4, 5), (1, 2), (1, 1), ((0, 4), (3, 5)))
    assert {t for t in product(range(4), range(5)) if shown.mark(t) is Mark.MASKED} == set(product(range(4), (3, 4)))
    assert "masked: no query attends to it" in text_of(print_picture, shown)


def test_a_matrix_of_queries_on_another_grid():
    rows = matrix(Neighborhood.of(1, 3).resolve((4,)), 4, 8)
    same = matrix(Neighborhood.of(1, 3).resolve((4,)), 4)
    assert rows == [row for row in same for _ in range(2)]


def test_a_ranks_shard_and_halo():
    """Its own tokens, inside where their windows are its own tokens, and what others must send, by the definition."""
    neighborhood, lengths = Neighborhood.of(2, (3, 5), boundary=("shift", "wrap")).resolve((6, 12)), (6, 12)
    shown = shard_picture(neighborhood, lengths, (1, 3), 2)
    own = set(product(range(6), range(8, 12)))
    of_each = {
        query: {(r, c % 12) for r, c in product(*map(neighbors, neighborhood.axes, lengths, query))} for query in own
    }
    halo = set().union(*of_each.values()) - own
    marked = {mark: {t for t in product(*map(range, lengths)) if shown.mark(t) is mark} for mark in Mark}
    assert marked[Mark.HALO] == halo
    assert marked[Mark.INSIDE] == {query for query, keys in of_each.items() if keys <= own}
    assert marked[Mark.BORDER] == own - marked[Mark.INSIDE]
    assert "halo: keys and values that other ranks send" in text_of(print_picture, shown)


@pytest.mark.parametrize(("rank", "words"), [(3, "rank must be from 0 to 2, got 3"), (2, "rank 2 holds no token")])
def test_a_rank_without_a_shard(rank, words):
    with pytest.raises(ValueError, match=words):
        shard_picture(Neighborhood.of(1, 1).resolve((2,)), (2,), (3,), rank)


def test_the_keys_around_a_circle_are_on_the_map():
    neighborhood = Neighborhood.of(1, 5, boundary="wrap").resolve((12,))
    shown = picture(neighborhood, (12,), (1,), (1,))
    assert {t for t in range(12) if shown.mark((t,)) in KEYS} == {11, 0, 1, 2, 3}


def test_a_query_with_a_window_of_its_own():
    neighborhood = Neighborhood.of(2, (3, 7)).resolve((9, 12))
    shown = picture(neighborhood, (9, 12), (4, 0), (1, 1), size=5)
    own = Neighborhood.of(2, (3, 5)).resolve((9, 12))
    expected = set(product(*map(neighbors, own.axes, (9, 12), (4, 0))))
    assert {t for t in product(range(9), range(12)) if shown.mark(t) in KEYS} == expected
    assert shown.mark((4, 6)) is Mark.BOX
    with pytest.raises(ValueError, match="size must be odd"):
        picture(neighborhood, (9, 12), (4, 0), (1, 1), size=4)


def test_lines_have_borders_of_their_own():
    lengths = (4, 2, 6)
    neighborhoods = [Neighborhood.of(1, 3).clamp((n,)).resolve((n,)) for n in lengths]
    rows = lines_matrix(neighborhoods, lengths)
    start = 0
    for neighborhood, length in zip(neighborhoods, lengths):
        own = [row[start : start + length] for row in rows[start : start + length]]
        assert own == matrix(neighborhood, length)
        outside = [m for row in rows[start : start + length] for m in (*row[:start], *row[start + length :])]
        assert set(outside) == {Mark.OTHER}
        start += length
