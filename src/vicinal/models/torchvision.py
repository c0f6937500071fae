"""torchvision, which timm imports, beside a build of torch that its own operators were not compiled for.

The package index has torchvision for one build of torch only. Beside another (a CPU build, say) its operators do not
load, and its import fails where it describes them. None of them is used here, nor by what timm does with our models: so
they are declared, without an implementation. Calling one raises, as before.
"""

from __future__ import annotations

import re
from importlib import import_module

import torch

MOST = 32  # operators; torchvision 0.28 describes two in this way


def import_torchvision() -> None:
    """Import torchvision, with its operators declared where they do not load.

    Raises:
        ImportError: there is no torchvision.
        RuntimeError: it fails for another reason.
    """
    for _ in range(MOST):
        try:
            import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if missing is None:
                raise
            torch.library.define(missing[1], "() -> ()")
    import_module("torchvision")
