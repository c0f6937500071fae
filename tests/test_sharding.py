"""DTensors split over batch elements or heads: two processes, no communication, the results of one."""

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

from sharding_process import CASES

PROCESS = Path(__file__).parent / "sharding_process.py"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """By case: None where all was right, or what went wrong."""
    place = tmp_path_factory.mktemp("sharding")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROCESS), str(place / "meeting"), str(place / "report")]
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=PIPE, stderr=STDOUT, text=True)
        for rank in range(2)
    ]
    try:
        said = [p.communicate(timeout=200)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0], said
    return json.loads((place / "report").read_text())


@pytest.mark.parametrize("case", [*CASES, "compiled"])
def test_split_tensors_give_the_results_of_one_process(outcomes, case):
    assert outcomes[case] is None, outcomes[case]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            "head_dim",
            "query is split along its head_dim; .* batch, Shard.0., over heads, Shard.2., or over spatial axes",
        ),
        (
            "heads of one key head",
            "heads cannot be split over 2 processes, since key has 1, no multiple; shard the batch",
        ),
        ("heads with neighborhoods of their own", "since each has a neighborhood of its own; shard the batch"),
    ],
)
def test_what_cannot_be_split_says_what_can(outcomes, case, words):
    assert re.search(words, outcomes["refused"][case]), outcomes["refused"]
