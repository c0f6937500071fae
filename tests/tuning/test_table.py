import json
from dataclasses import replace
from typing import get_args

import pytest
import torch

from vicinal.backends.hopper.tilings import backward_configs, forward_configs
from vicinal.backends.protocol import Direction, settings
from vicinal.backends.triton.tilings import tilings
from vicinal.bench.cases import Case
from vicinal.dispatch import backend
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.tuning.table import Entry, ProblemClass, Table, Timed, Versions


def problem_of(lengths=(30, 40), window=7, heads=2, head_dim=64, dtype=torch.float16, **options):
    neighborhood = Neighborhood.of(len(lengths), window, **options).resolve(lengths)
    return Case("", lengths, neighborhood, heads, head_dim, dtype=dtype).problem("cpu")


PROBLEM = problem_of()


@pytest.mark.parametrize(
    "other",
    [
        problem_of((31, 41)),
        problem_of(window=6),
        problem_of(heads=3),
        replace(PROBLEM, scale=3.0),
        replace(PROBLEM, device=torch.device("meta")),
    ],
)
def test_alike_problems_are_of_one_class(other):
    assert ProblemClass.of(other) == ProblemClass.of(PROBLEM)


@pytest.mark.parametrize(
    "other",
    [
        problem_of((30,)),
        problem_of((30, 300)),
        problem_of((30, 12)),
        problem_of(window=8),
        problem_of(window=(7, 13)),
        problem_of(heads=64),
        problem_of(head_dim=32),
        problem_of(dtype=torch.bfloat16),
        problem_of(stride=2),
        problem_of(dilation=2),
        problem_of(is_causal=True),
        problem_of(boundary="clip"),
        replace(PROBLEM, value_dim=32),
        replace(PROBLEM, kv_heads=1),
        replace(PROBLEM, additional=1),
        replace(PROBLEM, has_rpb=True),
        replace(PROBLEM, has_key_mask=True),
        replace(PROBLEM, has_window_sizes=True),
        replace(PROBLEM, neighborhoods=(PROBLEM.neighborhood, Neighborhood.of(2, 5))),
    ],
)
def test_what_makes_kernels_or_work_others_makes_another_class(other):
    assert ProblemClass.of(other) != ProblemClass.of(PROBLEM)


@pytest.mark.parametrize("size", [200, 201, 1000])
def test_long_grids_are_alike(size):
    assert ProblemClass.of(problem_of((size, size), heads=32)) == ProblemClass.of(problem_of((199, 210), heads=32))


def test_a_window_of_a_whole_axis_counts_by_its_length():
    assert ProblemClass.of(problem_of(window=None)).window == (16, 32)


def configs():
    for direction in get_args(Direction):
        yield from (("triton", config) for config in tilings(PROBLEM, direction))
        yield from (("torch", config) for config in backend("torch").configs(PROBLEM, direction))
        yield from (("unfused", config) for config in backend("unfused").configs(PROBLEM, direction))
        yield from (("numba", config) for config in backend("numba").configs(PROBLEM, direction))
    yield from (("hopper", config) for config in (*forward_configs(PROBLEM), *backward_configs(PROBLEM)))


@pytest.mark.parametrize(("name", "config"), list(configs()), ids=str)
def test_settings_survive_json_and_tell_configurations_apart(name, config):
    own = settings(config)
    assert json.loads(json.dumps(own)) == own
    same = [c for other, c in configs() if other == name and type(c) is type(config) and settings(c) == own]
    assert set(same) == {config}


@pytest.mark.parametrize("direction", get_args(Direction))
@pytest.mark.parametrize("name", ["triton", "numba", "torch", "unfused"])
def test_settings_become_the_configuration_again(name, direction):
    own = backend(name)
    for config in own.configs(PROBLEM, direction):
        given = json.loads(json.dumps(settings(config)))
        assert own.configured(PROBLEM, direction, given) == config
        assert own.configured(PROBLEM, direction, given | {"colour": 3}) is None
        assert own.configured(PROBLEM, direction, {}) is None


def test_a_tiling_is_taken_by_problems_that_its_kernel_can_run():
    own, dilated = backend("triton"), problem_of((90, 90), dilation=12)
    tiling = settings(tilings(PROBLEM, "forward")[0])
    listed = [settings(t) for t in tilings(dilated, "forward")]
    unfolded = next(s for s in listed if s["unfolded"] is not None)
    assert own.configured(problem_of((300, 200), window=5), "forward", tiling) is not None
    assert own.configured(PROBLEM, "backward", tiling) is None
    assert own.configured(PROBLEM, "forward", unfolded) is None
    assert own.configured(dilated, "forward", unfolded) is not None
    assert own.configured(problem_of((300,)), "forward", tiling) is None


@pytest.mark.parametrize(
    "change",
    [{"warps": 3}, {"stages": 7}, {"tile": [3, 16]}, {"tile": [512, 16]}, {"step": [1, 1]}, {"tile": []}],
    ids=str,
)
def test_a_tiling_that_no_kernel_can_run_is_not_taken(change):
    tiling = settings(tilings(PROBLEM, "forward")[0])
    assert backend("triton").configured(PROBLEM, "forward", tiling) is not None
    assert backend("triton").configured(PROBLEM, "forward", tiling | change) is None


def test_what_follows_from_the_problem_is_no_setting():
    own, near = (backend("numba").configs(p, "forward") for p in (PROBLEM, problem_of((31, 41), window=6)))
    pairs = [(a, b) for a in own for b in near if a.tiles == b.tiles]
    assert pairs
    assert all(a.boxes != b.boxes and settings(a) == settings(b) for a, b in pairs)


VERSIONS = Versions("2", "3", "", "abc")
ENTRY = Entry(
    ProblemClass.of(PROBLEM),
    "forward",
    VERSIONS,
    PROBLEM.in_words(),
    (Timed("triton", {"tile": [8, 8], "query": {"warps": 4}}, 1e-5), Timed("numba", {"tiles": [[4, 4]]}, 2e-5)),
)


def test_a_table_survives_json():
    table = Table("card")
    for entry in (ENTRY, replace(ENTRY, direction="backward"), replace(ENTRY, versions=replace(VERSIONS, torch="9"))):
        table.add(entry)
    assert Table.from_json(table.to_json()) == table
    assert json.loads(table.to_json())["entries"][0]["timings"][0]["config"]["tile"] == [8, 8]
    assert len(table.of_versions(VERSIONS)) == len(table.latest()) == 2


def test_an_entry_replaces_what_was_measured_before():
    table = Table("card")
    table.add(ENTRY)
    table.add(replace(ENTRY, timings=()))
    assert [entry.timings for entry in table.entries.values()] == [()]


def test_timings_are_read_fastest_first():
    table = Table("card")
    table.add(replace(ENTRY, timings=ENTRY.timings[::-1]))
    assert next(iter(Table.from_json(table.to_json()).entries.values())) == ENTRY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"device": "x"}',
        '{"device": "x", "entries": [1]}',
        '{"device": "x", "entries": [{}]}',
        '{"device": "x", "entries": 3}',
        Table("x", {ENTRY.key: ENTRY}).to_json().replace('"forward"', '"sideways"'),
        Table("x", {ENTRY.key: ENTRY}).to_json().replace('"head_dim"', '"legs"'),
        Table("x", {ENTRY.key: ENTRY}).to_json().replace("1e-05", '"fast"'),
        Table("x", {ENTRY.key: ENTRY}).to_json()[:-20],
    ],
)
def test_what_is_no_table_is_refused(text):
    with pytest.raises(ValueError, match="no table of timings"):
        Table.from_json(text)
