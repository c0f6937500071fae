"""Try an installed vicinal, in an environment of its own: smoke.py alone (torch and nothing else), or smoke.py extras.

Fails where something that should be there is not, or where the package comes from a checkout.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import vicinal


def command(*words: str, status: int = 0) -> str:
    """What `vicinal` prints to both its outputs; it must end with `status`."""
    program = Path(sys.executable).with_name("vicinal")
    done = subprocess.run([program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == status, (words, done.returncode, done.stdout)
    return done.stdout


def attention() -> None:
    """Blocked attention is plain attention within blocks; and there are gradients."""
    query, key, value = (torch.randn(1, 6, 6, 2, 8, requires_grad=True) for _ in range(3))
    out = vicinal.na2d(query, key, value, kernel_size=3, stride=3)
    blocks = [t[0, :3, :3].flatten(0, 1).transpose(0, 1) for t in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(*blocks).transpose(0, 1).unflatten(0, (3, 3))
    torch.testing.assert_close(out[0, :3, :3], expected)
    out.sum().backward()
    assert all(t.grad is not None for t in (query, key, value))


def alone() -> None:
    """Torch and nothing else."""
    assert "numba" in command("info")
    assert command("--version") == f"vicinal {vicinal.__version__}\n"
    for words in (["--help"], ["show", "9", "--window", "3"], ["denoise", "a.png", "b.png"]):
        assert "pip install 'vicinal[cli]'" in command(*words, status=2)


def extras() -> None:
    """With the extras cpu, cli and plot."""
    from PIL import Image

    assert "numba  runs" in command("info")
    assert "numba  chosen" in command("explain", "32x32", "--window", "7")
    with tempfile.TemporaryDirectory() as folder:
        drawn, noisy, clean = (str(Path(folder, name)) for name in ("drawn.png", "noisy.png", "clean.png"))
        command("show", "9x9", "--window", "3", "--png", drawn)
        Image.effect_noise((40, 30), 20).save(noisy)
        command("denoise", noisy, clean)
        assert Image.open(clean).size == (40, 30)
        assert Path(drawn).stat().st_size > 0


if __name__ == "__main__":
    assert Path(vicinal.__file__).is_relative_to(sys.prefix), f"this is not the installed one: {vicinal.__file__}"
    attention()
    {"alone": alone, "extras": extras}[sys.argv[1]]()
    print(f"vicinal {vicinal.__version__} works: {sys.argv[1]}")
