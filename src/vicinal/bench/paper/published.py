"""The paper's own numbers, tables 1 to 8, of an A100, from `published.json` beside this file.

The paper: "Faster Neighborhood Attention: Reducing the O(n^2) Cost of Self Attention at the Threadblock Level",
arXiv 2403.04690. It has no GEMM kernels for three dimensions, and no cuDNN.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from vicinal.bench.paper.systems import FUSED, GEMM, NAIVE

SYSTEMS = {  # of ours -> of the file
    NAIVE: "naive",
    GEMM: "gemm",
    FUSED: "fused",
    "SDPA efficient (self attention)": "fmha",
    "SDPA flash (self attention)": "fav2",
}
DTYPES = {"float16": "fp16", "float32": "fp32"}


class Published(NamedTuple):
    """An improvement: average, least and largest, in percent."""

    average: float
    least: float
    largest: float


def matched(dtype: str, rank: int, system: str, against: str) -> float | None:
    """Tables 1 and 2: the percentage of forward passes on which `system` matches or outperforms `against`."""
    table = {"float16": "table1_fp16", "float32": "table2_fp32"}[dtype]
    found = _tables()[f"{table}_forward_percent_matched_or_outperformed"][f"{rank}d"]
    return found.get(SYSTEMS.get(system), {}).get(SYSTEMS.get(against))


def improvement(dtype: str, passed: str, rank: int, system: str, over: str = NAIVE) -> Published | None:
    """Tables 3 (forward) and 4 (forward and backward, float16 only)."""
    if passed == "forward":
        table = _tables()["table3_forward_improvement_average_min_max"][DTYPES[dtype]]
    elif dtype == "float16":
        table = _tables()["table4_fp16_forward_backward_improvement_average_min_max"]
    else:
        return None
    found = table[f"{rank}d"].get(f"{SYSTEMS[system]}_over_{SYSTEMS[over]}")
    return None if found is None else Published(*found)


def models(number: int) -> list[dict[str, Any]]:
    """The lines of table 5, 6 or 7 (images per second) or 8 (hours of training): a model, and what each system has.

    Raises:
        KeyError: there is no such table.
    """
    name = next((name for name in _tables() if name.startswith(f"table{number}_")), None)
    if name is None or number < 5:
        raise KeyError(f"no table of models {number}")
    return list(_tables()[name])


@cache
def _tables() -> dict[str, Any]:
    return json.loads(files("vicinal.bench.paper").joinpath("published.json").read_text(encoding="utf-8"))
