"""Pack cuDNN's flex attention for a GPU machine without a package index: what it imports, in two archives under 60 MB.

    python benchmarks/pack_cudnn_flex.py FOLDER [--python 3.12]

downloads the wheels with pip (versions below), keeps what `cudnn.flex_attention` needs of them, and writes
FOLDER/cudnn-flex-libs.tar.xz (two large libraries, which share code: one dictionary for both; minutes of compression)
and FOLDER/cudnn-flex-python.tar.xz. There, `unpack` beside it in .gpu/cudnn/run.sh does

    mkdir site && for a in FOLDER/cudnn-flex-*.tar.xz; do tar xf $a -C site; done
    export PYTHONPATH=src:site:site/nvidia_cutlass_dsl/dsl_packages

after which `vicinal bench --peer cudnn-flex` finds it. The machine needs torch for CUDA 13.
"""

from __future__ import annotations

import argparse
import io
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

WHEELS = {  # distribution and version -> what of it is kept, what of that is not
    "nvidia-cudnn-frontend==1.32.0": (
        r"cudnn/([^/]+\.(py|so)|(_cutlass_helpers|engines|flex_attention|frost|ops|experimental)/.*\.py)$",
        r"^$",
    ),
    "nvidia-cutlass-dsl==4.8.1": (r"^$", r"^$"),
    "nvidia-cutlass-dsl-libs-base==4.8.1": (r"nvidia_cutlass_dsl/.*\.(py|so|json)$", r"/iket/|/lib/stubs/"),
    "nvidia-cutlass-dsl-libs-core==4.8.1": (r"nvidia_cutlass_dsl/.*\.(py|json)$", r"^$"),
    "nvidia-cutlass-dsl-libs-cu13==4.8.1": (r"nvidia_cutlass_dsl/.*\.(py|so)$", r"/lib/stubs/"),
    "cuda-bindings==13.5.0": (r"cuda/.*\.(py|so)$", r"/nvml|/cufile|/_v2/|/nvfatbin|/nvvm|/cudla|/nvjitlink"),
    "cuda-pathfinder==1.9.1": (r"cuda/.*\.py$", r"/tests?/"),
    "apache-tvm-ffi==0.1.15.post2": (r"tvm_ffi/.*\.(py|so|so\.\d+)$", r"/3rdparty/"),
}
LIBRARIES = re.compile(r"_cutlass_ir\.cu13|libcute_dsl_runtime\.so$")  # in an archive of their own
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64", "any")
FILTERS = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 256 << 20},
]


def download(python: str, folder: Path) -> None:
    """The wheels, without what they depend on."""
    options = ["--no-deps", "--only-binary=:all:", f"--python-version={python}", "--dest", str(folder)]
    options += [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options, *WHEELS], check=True)


def kept(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of what is needed; of each wheel also its METADATA, where versions are read."""
    for requirement, (wanted, unwanted) in WHEELS.items():
        name = requirement.partition("==")[0].replace("-", "_")
        (wheel,) = folder.glob(f"{name}-[0-9]*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                if (re.match(wanted, entry) and not re.search(unwanted, entry)) or entry.endswith("dist-info/METADATA"):
                    yield entry, archive.read(entry)


def pack(files: dict[str, bytes], path: Path) -> None:
    """One archive."""
    with lzma.open(path, "wb", filters=FILTERS) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    print(f"{path}: {len(files)} files, {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Download and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="the other machine's")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as wheels:
        download(options.python, Path(wheels))
        files = dict(kept(Path(wheels)))
    libraries = {name: content for name, content in files.items() if LIBRARIES.search(name)}
    pack({n: c for n, c in files.items() if n not in libraries}, options.folder / "cudnn-flex-python.tar.xz")
    pack(libraries, options.folder / "cudnn-flex-libs.tar.xz")


if __name__ == "__main__":
    main()
