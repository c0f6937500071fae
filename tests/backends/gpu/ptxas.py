"""What ptxas says of a kernel, for the compile-only scripts."""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability


def compiled_with_log(compile: Callable[[], Any]) -> tuple[Any, str]:
    """The kernel, and what ptxas said when Triton ran it; if Triton had the kernel in a cache, ptxas is run again."""
    knobs.nvidia.dump_ptxas_log = True
    with redirect_stdout(io.StringIO()) as said:
        kernel = compile()
    log = said.getvalue()
    return kernel, log if "bytes stack frame" in log else log_of(kernel)


def number(pattern: str, log: str) -> int:
    """The one number of a pattern."""
    found = re.search(pattern, log)
    assert found is not None, log
    return int(found[1])


def log_of(kernel: Any) -> str:
    """What ptxas says when it is run again."""
    arch = kernel.metadata.target.arch
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(kernel.asm["ptx"])
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={sm_arch_from_capability(arch)}", source, "-o", "/dev/null"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr
