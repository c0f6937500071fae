"""Published checkpoints: where they are, and how they become a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROJECTS = "https://shi-labs.com/projects"
NAT_URL = f"{PROJECTS}/nat/checkpoints/CLS"
DINAT_URL = f"{PROJECTS}/dinat/checkpoints"
CONTAINERS = ("state_dict", "model")  # of state dicts, in files of training programs
PREFIX = "backbone."  # in files of detectors and segmentation models


@dataclass(frozen=True)
class Checkpoint:
    """A published file.

    Attributes:
        url: where it is; its checksum is published nowhere.
        side: pixels of the images it was trained on last.
        num_classes: outputs of its head. Of ImageNet-22k's files this is the data set's number of classes: it was not
            compared with a file.
    """

    url: str
    side: int = 224
    num_classes: int = 1000

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


def unreachable(url: str, error: Exception) -> OSError:
    """What to raise when a file cannot be downloaded: where `torch.hub` looks for it first."""
    file, folder = url.rpartition("/")[2], Path(torch.hub.get_dir()) / "checkpoints"
    return OSError(f"cannot download {url} ({error}): put the file {file} into {folder}, where it is looked for first")


def state_of(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in what a file holds: bare, in a training program's container, or a detector's backbone."""
    for name in CONTAINERS:
        if isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    backbone = {key.removeprefix(PREFIX): t for key, t in loaded.items() if key.startswith(PREFIX)}
    return dict(backbone or loaded)


def fitted(loaded: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """The state dict for a model; of a backbone that gets a classifier's, without the classifier's end.

    A backbone's own norms, which a classifier has not, stay what they are.
    """
    state = state_of(loaded)
    if model.architecture.feature_norms:
        own = model.state_dict()
        state = {name: t for name, t in state.items() if not name.startswith(("norm.", "head."))}
        missing = {name: t for name, t in own.items() if name.startswith("norm") and name not in state}
        return state | missing
    return state
