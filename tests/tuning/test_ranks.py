"""Three processes tune together, over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import torch

from vicinal.tuning.ranks import Ranks

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    place = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parent / "rank.py"), str(place / "meeting"), str(place)]
    processes = [
        subprocess.Popen(
            [*command, str(rank)],
            env=environment | {"VICINAL_CACHE_DIR": str(place / f"cache-{rank}")},
            stdout=PIPE,
            stderr=STDOUT,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        said = [p.communicate(timeout=200)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0, 0], said
    return [json.loads((place / f"report-{rank}").read_text()) for rank in range(3)]


def test_every_rank_takes_what_rank_0_decides(reports):
    assert reports[0]["found"] == reports[1]["found"] == reports[2]["found"]
    assert reports[0]["plans"] == reports[1]["plans"] == reports[2]["plans"]
    fastest = [configs[0] for _, configs in reports[0]["found"]]
    assert sorted(map(str, fastest)) == sorted(map(str, reports[0]["plans"]))


def test_problems_that_any_rank_met_are_measured(reports):
    assert [measured.split()[0] for measured, _ in reports[0]["found"]] == ["9x12", "9x80"]


def test_candidates_are_shared_out(reports):
    assert [r["timed"] for r in reports] == [[[0, 3]] * 2, [[1]] * 2, [[2]] * 2]


def test_rank_0_alone_writes(reports):
    assert [r["file"] for r in reports] == [True, False, False]


def test_what_rank_0_knows_is_not_measured_again_and_told(reports):
    assert [r["again"] for r in reports] == [[], [], []]
    assert [r["told"] for r in reports] == [reports[0]["plans"]] * 3


def test_where_one_rank_may_not_time_none_does(reports):
    for report in reports:
        found, (warning,), timed = report["refused"]
        assert found == timed == []
        assert "deterministic algorithms are on" in warning


def test_a_process_alone_is_the_first_of_one():
    alone = Ranks.here()
    assert (alone.rank, alone.size, alone.gather("x"), alone.first("y")) == (0, 1, ["x"], "y")
