"""Maps split over six processes, on gloo: outputs and gradients are those of one process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import torch

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

from distributed.process import CASES

PROCESS = Path(__file__).parent / "process.py"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """By case: what went wrong, on which ranks."""
    place = tmp_path_factory.mktemp("distributed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROCESS), str(place / "meeting"), str(place / "report")]
    ran = subprocess.run(command, env=environment, stdout=PIPE, stderr=STDOUT, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stdout
    return json.loads((place / "report").read_text())


@pytest.mark.parametrize("case", CASES)
def test_the_shards_are_those_of_the_whole(outcomes, case):
    if case == "modules" and torch.__version__.startswith("2.10."):
        pytest.skip("torch 2.10's linear layers take no batch of maps that are split")
    assert outcomes[case] == []


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("windows that differ", "neighborhood must be the same on every rank, .*3x3.* on rank 0 and .*5x5.* on rank 1"),
        ("a shape that differs", "scale must be the same on every rank, got 0.5 on rank 0 and 1.5 on rank 1"),
        ("another shard", r"query must hold this rank's shard \(\(4, 8\), \(0, 6\)\) of \(8, 6\), .*shape \[1, 3, 6"),
        ("a window larger than the map", "axis 1 has length 6, got kernel_size 7"),
        ("no layout", "layout must be a Layout, got None"),
        ("an axis that there is not", "axes must name spatial axes, from 0 to 1, got 2"),
        ("a dimension that there is not", "axes must be of dimensions of the mesh, 'a', got 'c'"),
        ("sizes that do not add up", r"sizes of axis 0 must be 2 numbers that add up to 8, got \(3, 4\)"),
        ("plain keys", "key must be a DTensor, as query is, got Tensor"),
    ],
)
def test_what_cannot_be_is_said_on_every_rank(outcomes, case, words):
    told = [own[case] for own in outcomes["refused"]]
    assert len(told) == 2
    assert all(re.search(words, one) for one in told), told
