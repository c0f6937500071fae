"""What is measured: the rows of the paper's tables of models, and any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vicinal.bench.paper import published
from vicinal.models import FFHQ_256, FFHQ_1024
from vicinal.models.register import PUBLISHED
from vicinal.problem import dtype_name

GENERATORS = {"stylenat_ffhq_256": FFHQ_256, "stylenat_ffhq_1024": FFHQ_1024}
NAMES = {  # the paper's name of a model -> ours
    **{f"NAT-{s[0].upper()}": f"nat_{s}" for s in ("mini", "tiny", "small", "base")},
    **{f"DiNAT-{s[0].upper()}": f"dinat_{s}" for s in ("mini", "tiny", "small", "base", "large")},
    **{f"DiNAT_s-{s[0].upper()}": f"dinat_s_{s}" for s in ("tiny", "small", "base", "large")},
    "DiNAT_s-L-384": "dinat_s_large_384",
    "DiNAT-L-384": "dinat_large_384_11x11",  # by its FLOPs and accuracy
    "FFHQ-256": "stylenat_ffhq_256",
    "FFHQ-1024": "stylenat_ffhq_1024",
}
BATCH = 128  # of tables 5, 6 and 8
FIRST = ("nat_tiny", "dinat_tiny", "nat_mini", "nat_base")  # what to know first, if time is short


@dataclass(frozen=True)
class Row:
    """A model, and how it runs.

    Attributes:
        model: a name of timm's, or of `GENERATORS`.
        dtype: of parameters and images; in training autocast's.
        batch: images at once.
        training: forward and backward pass and a step of AdamW, instead of inference.
        side: of square images, in pixels; None for the model's own. Generators have one.
    """

    model: str
    dtype: torch.dtype
    batch: int
    training: bool = False
    side: int | None = None

    def key(self) -> dict[str, Any]:
        """What tells it from others in a file."""
        passed = "training" if self.training else "inference"
        return {
            "model": self.model,
            "dtype": dtype_name(self.dtype),
            "batch": self.batch,
            "pass": passed,
            "side": self.side,
        }


def known() -> list[str]:
    """The names of models."""
    return [*sorted({tag.partition(".")[0] for tag, _ in PUBLISHED.values()}), *GENERATORS]


def table(number: int) -> list[Row]:
    """The rows of the paper's table 5, 6, 7 or 8; those to know first are first."""
    lines = published.models(number)
    kinds = {5: (torch.float16, False), 6: (torch.float32, False), 7: (torch.float32, False), 8: (torch.float16, True)}
    dtype, training = kinds[number]
    rows = [Row(NAMES[line["model"]], dtype, line.get("batch", BATCH), training) for line in lines]
    return sorted(rows, key=lambda row: FIRST.index(row.model) if row.model in FIRST else len(FIRST))


def chosen(
    tables: Sequence[int],
    models: Sequence[str],
    dtypes: Sequence[torch.dtype],
    batch: int | None,
    training: bool,
    side: int | None,
) -> list[Row]:
    """The rows of tables, if given only of some models; else one of every model and dtype.

    `batch` and `side` change those of tables.
    """
    if tables:
        rows = [row for number in tables for row in table(number) if not models or row.model in models]
        return [Row(r.model, r.dtype, batch or r.batch, r.training, side) for r in rows]
    return [Row(model, dtype, batch or 1, training, side) for model in models for dtype in dtypes]
