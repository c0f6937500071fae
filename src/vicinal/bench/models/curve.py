"""How a model learns: losses on images made for it, which fall alike whatever computes its attention.

A curve is kept as a line of a results file:
    {"kind": "curve", date, device, model, dtype, batch, losses: {name of a system: of each step}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from vicinal.bench.models.attends import attending, systems
from vicinal.bench.models.rows import Row
from vicinal.problem import dtype_name

KIND = "curve"
CLASSES = 10
RATE = 2e-4  # of AdamW


def curve(row: Row, names: Sequence[str], device: torch.device, steps: int) -> dict[str, Any]:
    """A row's model trained from nothing with each system, on the same images.

    Raises:
        FloatingPointError: a gradient of the last step is not finite.
    """
    losses = {name: train(row, name, device, steps).tolist() for name in names}
    return {"kind": KIND, "model": row.model, "dtype": dtype_name(row.dtype), "batch": row.batch, "losses": losses}


def train(row: Row, system: str, device: torch.device, steps: int) -> Tensor:
    """Losses `[steps]` of a row's model, trained with a system's attention under autocast.

    Raises:
        FloatingPointError: a gradient of the last step is not finite.
    """
    from timm import create_model

    torch.manual_seed(0)
    model = create_model(row.model, num_classes=CLASSES, drop_path_rate=0.0).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    generator = torch.Generator(device).manual_seed(0)
    side, found = row.side or model.pretrained_cfg["input_size"][-1], []
    with attending(systems(device)[system].make()):
        for _ in range(steps):
            images, labels = _images(generator, row.batch, side)
            with torch.autocast(device.type, row.dtype, enabled=row.dtype != torch.float32):
                loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach().float())
    if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters()):
        raise FloatingPointError(f"{row.model} with {system}: a gradient is not finite after {steps} steps")
    return torch.stack(found).cpu()


def _images(generator: torch.Generator, batch: int, side: int) -> tuple[Tensor, Tensor]:
    """Images of a class's own pattern under noise, and the classes."""
    device = generator.device
    own = torch.Generator(device).manual_seed(1)
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=own, device=device, dtype=torch.float32)
    labels = torch.randint(CLASSES, (batch,), generator=generator, device=device, dtype=torch.int64)
    noise = torch.randn(batch, 3, side, side, generator=generator, device=device, dtype=torch.float32)
    return interpolate(patterns[labels], side) + noise, labels
