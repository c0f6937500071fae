"""The Hopper kernels compile for sm_90a without a GPU, use what it is for, and keep tiles out of local memory.

With the installed Triton, and with the one in the folder VICINAL_OTHER_TRITON, if that is set: run it with the newest
release when Gluon may have changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
pytest.importorskip("triton.experimental.gluon")

SCRIPT = Path(__file__).with_name("compile_only.py")
SOURCE = Path(__file__).parents[4] / "src"
STACK = (
    256  # bytes: scalars of the walk may wait in local memory, tiles may not (a row of scores is 256 bytes a thread)
)

# kernel:case -> wgmma instructions: one per 16 of the inner dimension, two consumer copies of each
EXPECTED = {
    "forward:1d-causal": 2 * (2 * 8 + 2 * 8),
    "forward:3d-stride": 2 * (2 * 8 + 2 * 8),
    "forward:d64": 2 * (2 * 4 + 2 * 8),
    "forward:d96": 2 * (2 * 6 + 2 * 3 * 8),
    "forward:d256": 2 * (2 * 16 + 2 * 4),
    "forward:2d-gqa": 2 * (2 * 8 + 2 * 8),
    "paired:2d": 2 * (2 * 8 + 2 * 8),
    "fixed:2d": 2 * (2 * 8 + 2 * 8),
    "keys:2d": 2 * (8 + 8 + 4 + 4),
    "queries:2d": 2 * (8 + 8 + 4),
    "keys:d96": 2 * (6 + 6 + 3 * 4 + 3 * 4),
    "keys:d192-128": 24 + 2 * 12,  # dV: QK and one product; dK: QK, VdO and one product of three pieces
    "keys:d256": (16 + 4) + (16 + 16 + 4),
    "queries:d256": 2 * (16 + 16 + 2),
    "onepass:2d": 2
    * (8 + 8 + 4 + 2 * 4 + 3 * 8),  # dK behind dQ and without; dQ also without own scores, and at the end
    "onepass:1d": 2 * (8 + 8 + 4 + 2 * 4 + 3 * 8),
    "onepass:d64": 2 * (4 + 4 + 4 + 2 * 4 + 3 * 8),
    "onepass:3d-stride": 2 * (8 + 8 + 4 + 2 * 4 + 3 * 8),
    "dk:2d": 2 * (8 + 8 + 4),
    "dv:d256": 16 + 4,
    "forward:3d-part": 2 * (2 * 8 + 2 * 8),
    "keys:2d-part": 2 * (8 + 8 + 4 + 4),
    "forward:d48": 2 * (2 * 4 + 2 * 8),  # as d64
    "keys:d200": (16 + 4) + (16 + 16 + 4),
    "forward:negative": 2 * (2 * 4 + 2 * 8),
    "paired:2d-more": 2 * (2 * 8 + 2 * 8),
    "more:d48-more": 2 * (4 + 4 + 4 + 4),
    "onepass_more:2d-more": 2 * (8 + 8 + 4 + 2 * 4 + 2 * 8),
    "forward:masked-d64": 2 * (2 * 4 + 2 * 8),  # as without a mask
    "onepass:masked-d64": 2 * (4 + 4 + 4 + 2 * 4 + 3 * 8),
    "onepass:masked-3d": 2 * (8 + 8 + 4 + 2 * 4 + 3 * 8),
    "keys:masked-d64": 2 * (4 + 4 + 4 + 4),
    "queries:masked-d192": 2 * (12 + 12 + 3 * 4),
}
ONE_STORES = ("dv:d256",)  # the warpgroup that makes dK has nothing to do
PREPARE = ["finish:2d", "finish:3d", "prepare:1d", "prepare:2d", "prepare:3d", "prepare:2d-gqa", "prepare:d96"]

# kernels, all launched before the one ahead has ended -> partitions that wait for it (each reads global memory
# itself)
WAITS = {
    "forward:3d-stride": 1,
    "paired:2d": 1,
    "prepare:2d": 1,
    "clearing:2d": 1,
    "keys:2d": 1,
    "onepass:2d": 1,
    "finish:2d": 1,
    "queries:2d": 3,  # consumers load log-sum-exps
    "forward:2d-heads": 4,  # all read the table of heads, and the producer waits before its copies too
    "keys:2d-heads": 4,
    "queries:2d-heads": 6,
    "steps:masked-d64": 1,
    "forward:masked-d64": 3,  # consumers load lists of steps
    "onepass:masked-d64": 3,
    "keys:masked-d64": 3,
    "queries:masked-d192": 5,
}
UNCHAINED = "unchained-keys:2d"
ALIKE = ("fixed:2d", "fixed:2d-other")  # but for window and lengths


def compile_all(names: list[str], first_on_path: str | None = None) -> dict[str, dict]:
    path = [first_on_path] if first_on_path else []
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([*path, str(SOURCE)]))
    done = subprocess.run([sys.executable, SCRIPT, *names], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["case"]: row for row in rows}


def check(name: str, row: dict) -> None:
    assert row["wgmma"] == EXPECTED[name]
    assert row["tma_loads"] >= 3  # queries, keys, values
    if not name.startswith(("more", "onepass_more")):  # they write float32
        assert row["tma_stores"] >= (1 if name in ONE_STORES else 2)  # one per consumer
    assert row["setmaxnreg"] > 0  # registers move from the producer to the consumers
    assert row["shared"] <= 227 * 1024
    assert row["stack"] <= STACK
    assert not row["serialized"]


@pytest.fixture(scope="module")
def installed() -> dict[str, dict]:
    return compile_all(list(dict.fromkeys([*EXPECTED, *WAITS, *PREPARE, UNCHAINED, *ALIKE])))


@pytest.mark.parametrize("name", EXPECTED)
def test_compiles(name, installed):
    check(name, installed[name])


@pytest.mark.parametrize("name", WAITS)
def test_waits_for_the_kernel_ahead_before_reading(name, installed):
    row = installed[name]
    assert row["pdl"]
    assert row["waits"] == WAITS[name]
    assert row["lets"] == 1
    assert row["early"] == 0


# fences between ordinary accesses of shared memory and copies: one for the barriers, one before each consumer's store
FENCES = {
    "forward:d64": 3,
    "paired:2d": 3,
    "queries:2d": 3,
    "keys:2d": 5,  # and one before each frees a tile whose log-sum-exps it has loaded
    "keys:d256": 5,
    # Before what is shared, of scores or not, with an addend or not; before each of three addends, and the store.
    "onepass:2d": 1 + 2 * (4 + 3 + 1),
    "onepass:d64": 1 + 2 * (4 + 1),  # addends are added from registers
    "forward:masked-d64": 3 + 2 * 2,  # and one behind what each cleans, in the loop and after it
    "onepass:masked-d64": 1 + 2 * (5 + 3),  # of own keys, of own values, and of queries with their gradients
}


@pytest.mark.parametrize("name", ["onepass:1d", "onepass:2d", "onepass:d64", "onepass:3d-stride"])
def test_one_pass_keeps_what_a_step_needs_in_registers(name, installed):
    """What is spilled costs more than its bytes: a few scalars of an item, not the addresses of 16 rows each."""
    assert installed[name]["spill_stores"] <= 128


# of all warps of a warpgroup, in all of a kernel
BARRIERS = {"onepass:2d": 28, "onepass:d64": 28}


@pytest.mark.skipif(not triton.__version__.startswith("3.6."), reason="Triton 3.8 puts 37 and 39")
@pytest.mark.parametrize(("name", "most"), BARRIERS.items())
def test_warps_of_a_warpgroup_seldom_meet(name, most, installed):
    """Triton puts barriers around each ordinary arrival: a step of one pass had seven, and two are needed."""
    assert installed[name]["barriers"] <= most


@pytest.mark.parametrize("name", FENCES)
def test_copies_are_ordered_with_ordinary_accesses(name, installed):
    assert installed[name]["fences"] == FENCES[name]


@pytest.mark.parametrize("name", PREPARE)
def test_rows_are_loaded_16_bytes_at_a_time(name, installed):
    """Whatever the rank: axes with one token must not hide that rows are aligned."""
    row = installed[name]
    assert row["wide_loads"] == 2 * 8  # 64 elements a thread, of outputs and of their gradients
    assert row["narrow_loads"] == 0


def test_waits_for_nothing_where_launches_do_not_overlap(installed):
    row = installed[UNCHAINED]
    assert not row["pdl"]
    assert row["waits"] == row["lets"] == 0


def test_one_kernel_serves_every_window_and_length(installed):
    one, other = ALIKE
    assert installed[one]["hash"] == installed[other]["hash"]


@pytest.mark.parametrize(
    "name", ["forward:1d-causal", "keys:2d", "queries:2d", "paired:2d", "onepass:2d", "more:d48-more"]
)
def test_compiles_with_another_triton(name):
    other = os.environ.get("VICINAL_OTHER_TRITON")
    if other is None:
        pytest.skip("VICINAL_OTHER_TRITON names no other Triton")
    check(name, compile_all([name], other)[name])
