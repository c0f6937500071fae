"""Warnings that point at the line outside the library that they are about."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from types import FrameType

import torch

from vicinal.torch_internals import run_when_traced

_INSIDE = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, torch.__file__))  # torch calls us in its modules


@run_when_traced
def warn(message: str) -> None:
    """`warnings.warn` for the first caller that is neither vicinal nor torch."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
