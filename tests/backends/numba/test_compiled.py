"""Kernels on disk: kept, and compiled where the disk is of no help."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from numba import int64
from numba.core import caching

import vicinal
from vicinal.backends.numba import compiled
from vicinal.backends.numba.kernels.vectors import load_int, store_int


def add_one(call):
    store_int(call, load_int(call) + int64(1))


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where kernels are kept."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    return tmp_path


def files(folder, ending):
    return list(Path(folder).rglob(f"*{ending}"))


def test_kernels_are_kept():
    found = compiled.compiled("forward", "float64")
    assert os.listdir(found._cache.cache_path)
    assert compiled.compiled("forward", "float64") is found


def test_kernels_are_compiled_where_nothing_can_be_kept(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled._compile(add_one).address


def test_a_kernel_is_found_again(folder):
    assert [compiled._compile(add_one).cache_hits for _ in range(2)] == [0, 1]


UPGRADED = """
import shutil, sys
from pathlib import Path
from vicinal.backends.numba.compiled import compiled
kernels = Path(sys.argv[1]) / "vicinal/backends/numba/kernels"
forward = kernels / "forward.py"
if sys.argv[2] == "upgrade":  # after what runs here was imported
    forward.write_text(forward.read_text() + "# another version\\n")
print(compiled("spread", "float32").cache_hits)
"""


def test_kernels_are_kept_as_what_was_imported_though_files_change_meanwhile(tmp_path):
    package = tmp_path / "vicinal"
    shutil.copytree(Path(vicinal.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "kept")}

    def hits(what):
        command = [sys.executable, "-c", UPGRADED, str(tmp_path), what]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert [hits("upgrade"), hits("run")] == [0, 0]  # the old one's is not taken for the new one's


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("ending", "harm"), [(".nbi", empty), (".nbi", truncate), (".nbc", empty), (".nbc", truncate), (".nbc", damage)]
)
def test_harmed_files_cost_one_compilation_and_a_warning(folder, ending, harm):
    compiled._compile(add_one)
    (path,) = files(folder, ending)
    harm(path)
    with pytest.warns(RuntimeWarning, match="cannot be read, so they are compiled") as warned:
        again = compiled._compile(add_one)
    assert len(warned) == 1
    assert again.address
    assert again.cache_hits == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled._compile(add_one).cache_hits == 1


def test_files_that_cannot_be_opened_cost_a_compilation_and_a_warning(folder):
    compiled._compile(add_one)
    (path,) = files(folder, ".nbi")
    replace_by_a_folder(path)
    with pytest.warns(RuntimeWarning, match="cannot be"):
        assert compiled._compile(add_one).address


def test_a_full_disk_costs_a_compilation_and_a_warning(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    with pytest.warns(RuntimeWarning, match="cannot be written, so they are compiled.*No space left"):
        assert compiled._compile(add_one).address
