"""Nsight Compute's CSV: kernels are given to their problems and systems, units are made ours."""

import json

import pytest
import torch

from vicinal.bench.paper import counters
from vicinal.bench.paper.document import document
from vicinal.bench.paper.systems import FUSED, GEMM, NAIVE

KERNELS = ("pn", "softmax", "nn", "pn", "softmax", "nn", "forward_kernel")


def csv_of(problems: int) -> list[str]:
    """As `ncu --csv --page raw` prints it, with one metric missing."""
    metrics = [m for m in counters.METRICS if m != "lts__t_sector_hit_rate.pct"]
    units = {"gpu__time_duration.sum": "usecond", "dram__bytes_read.sum": "Mbyte", "dram__bytes_write.sum": "Kbyte"}
    rows = [["ID", "Kernel Name", *metrics], ["", "", *(units.get(m, "%") for m in metrics)]]
    for i in range(problems):
        rows += [[str(i), f"{name}(arguments)", *("1,234.5" for _ in metrics)] for name in KERNELS]
    return ["==PROF== Connected", *(",".join(f'"{cell}"' for cell in row) for row in rows)]


def test_kernels_are_given_to_their_systems():
    names = list(counters.PROBLEMS)
    found = counters.parse(csv_of(len(names)))
    assert [k["problem"] for k in found] == [name for name in names for _ in KERNELS]
    assert [k["system"] for k in found[:7]] == [NAIVE] * 3 + [GEMM] * 3 + [FUSED]
    assert found[0]["seconds"] == pytest.approx(1234.5e-6)
    assert found[0]["bytes read"] == pytest.approx(1234.5e6)
    assert found[0]["bytes written"] == pytest.approx(1234.5e3)


def test_what_is_no_table_gives_nothing():
    assert counters.parse(["==ERROR== no permission"]) == []


def test_problems_are_what_their_names_say():
    for name, case in counters.cases().items():
        assert name.startswith(f"{len(case.lengths)}-D {'x'.join(map(str, case.lengths))} window ")
        assert case.dtype == torch.float16


def test_the_page_shows_them(tmp_path):
    file = tmp_path / "results.jsonl"
    problem = {"kind": "problem", "name": "a", "dtype": "float16", "rank": 1, "error": "none ran", "systems": {}}
    machine = {"device": "a device"}
    full = [dict.fromkeys(counters.METRICS.values(), 1.0) | kernel for kernel in counters.parse(csv_of(1))]
    counted = {"kind": "counters", "date": "2030", "command": "count", "machine": machine, "kernels": full}
    file.write_text("".join(json.dumps(line) + "\n" for line in (problem, counted)))
    text = document(file)
    assert "`softmax` | 1234.5 |" in text
    assert "`count`" in text
    moved = 3 * (1234.5 + 1.2345)
    assert f"| `nn` | 1234.5 | {1234.5 + 1.2345:.1f} | {moved:.1f} / " in text
