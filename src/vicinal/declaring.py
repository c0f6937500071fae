"""How this library's torch operators are declared."""

from __future__ import annotations

from typing import Any

import torch

TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)  # compile may trace them, and choose strides


def operator(name: str, schema: str) -> Any:
    """Declare `vicinal::name` with a schema, `(Tensor x) -> Tensor`; returns what calls it."""
    torch.library.define(f"vicinal::{name}", schema, tags=TAGS)
    return getattr(torch.ops.vicinal, name).default
