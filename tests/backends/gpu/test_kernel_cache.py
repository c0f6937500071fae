"""Keys of compiled kernels on disk do not depend on which kernel a process meets first."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest
import triton

from vicinal.backends.gpu import kernel_cache
from vicinal.backends.gpu.triton_key import _about, remembered

KEYS = """
import os
os.environ["TRITON_INTERPRET"] = "0"
import torch, triton
from importlib import import_module
for settled in (True, False):
    for module, name in (("forward", "forward_kernel"), ("backward", "key_value_gradient_kernel")):
        if os.fork():  # a process that has imported nothing of ours, but not torch once more
            assert os.wait()[1] == 0
            continue
        from vicinal.backends.gpu.kernel_cache import settle_keys
        first = getattr(import_module(f"vicinal.backends.triton.kernels.{module}"), name)
        if settled:
            settle_keys("vicinal.backends.triton.kernels")
        first.cache_key
        from vicinal.backends.triton.kernels.backward import query_gradient_kernel
        from vicinal.backends.triton.kernels.forward import forward_kernel
        print(forward_kernel.cache_key, query_gradient_kernel.cache_key, flush=True)
        os._exit(0)
"""


@pytest.fixture(scope="module")
def keys():
    """Of two kernels, by whether all were settled, in a process that met one or another first."""
    done = subprocess.run([sys.executable, "-c", KEYS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    return {True: lines[:2], False: lines[2:]}


def test_keys_do_not_depend_on_what_comes_first(keys):
    one, other = keys[True]
    assert one == other


@pytest.mark.skipif(not triton.__version__.startswith("3.6."), reason="Triton 3.8 settles keys by itself")
def test_triton_leaves_keys_to_what_comes_first(keys):
    """Else settling them can go."""
    one, other = keys[False]
    assert one != other


KEPT = """
import os
os.environ["TRITON_INTERPRET"] = "0"
import torch
from vicinal.backends.gpu import kernel_cache
from vicinal.backends.gpu.triton_key import _about, remembered
if {changed}:
    own = kernel_cache.triton_files
    kernel_cache.triton_files = lambda: own()[1:]  # as if some file were another
from vicinal.backends.triton.kernels.backward import query_gradient_kernel
from vicinal.backends.triton.kernels.forward import forward_kernel
for kernel in (query_gradient_kernel, forward_kernel):
    kernel_cache.settle_key(kernel)
print(kernel_cache.settle_keys.cache_info().misses > 0, forward_kernel.cache_key, query_gradient_kernel.cache_key)
"""


def kept(folder, changed=False):
    """Whether a process made the keys, and two of them."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder)}
    program = KEPT.format(changed=changed)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    made, *found = done.stdout.split()
    return made == "True", found


def test_keys_are_made_once_and_kept(keys, tmp_path):
    made = keys[True][0]
    assert kept(tmp_path) == (True, made)
    assert kept(tmp_path) == (False, made)
    assert kept(tmp_path, changed=True) == (True, made)


@pytest.mark.parametrize("text", ["", "null", "[]", '{"files": []}', '{"files": FILES, "value": {"triton": 1}}'])
def test_whatever_is_kept_instead_costs_making_it_again(text, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (tmp_path / "of").write_text("")
    about = json.dumps([_about(tmp_path / "of")])
    (tmp_path / "name").write_text(text.replace("FILES", about))
    made = []
    for _ in range(2):
        found = remembered("name", [tmp_path / "of"], lambda: made.append(0) or {"triton": "key"})
        assert found == {"triton": "key"}
        assert made == [0]


HERE = Path(__file__).parent
ANEW, FOUND = {"compilations": 1, "warnings": 1}, {"compilations": 0, "warnings": 0}
STATES = {  # of the cache: what it costs, and what the next process
    "empty .json": (ANEW, FOUND),
    "truncated .json": (ANEW, FOUND),
    "null .json": (ANEW, FOUND),
    "empty .cubin": (ANEW, FOUND),
    "truncated .cubin": (ANEW, FOUND),
    "truncated .ptx": (FOUND, FOUND),  # nobody reads it
    "unwritable": (ANEW, ANEW),
    "full": (ANEW, ANEW),
}


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(HERE.parents[2] / "src")
    command = [sys.executable, str(HERE / "damaged_cache.py"), str(tmp_path_factory.mktemp("cache")), *STATES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(STATES, map(json.loads, done.stdout.splitlines())))


@pytest.mark.parametrize("state", STATES)
def test_a_bad_cache_costs_one_compilation_and_a_warning(state, costs):
    """What is damaged is repaired; where nothing can be written, every process compiles."""
    assert tuple(costs[state]) == STATES[state]


REMEMBERED = """
import os, sys, time
os.environ["TRITON_INTERPRET"] = "0"
import triton
from triton.runtime import cache
own = cache.triton_key
made = []
cache.triton_key = lambda: made.append(0) or "a digest"
from vicinal.backends.gpu import triton_key
if {changed}:
    triton_key.READ = triton_key.READ[1:]  # as if some file were another
triton_key.remember_triton_key()
assert cache.triton_key() == cache.triton_key() == "a digest"
print(len(made), triton_key.NAME in os.listdir(os.environ["TRITON_CACHE_DIR"]))
"""


def digests(folder, changed=False):
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder)}
    program = REMEMBERED.format(changed=changed)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.split()


def test_triton_s_digest_of_itself_is_made_once(tmp_path):
    assert digests(tmp_path) == ["1", "True"]
    assert digests(tmp_path) == ["0", "True"]
    assert digests(tmp_path, changed=True) == ["1", "True"]


def test_all_that_triton_s_digest_is_of_is_looked_at():
    """Its own list, of Triton 3.6: a newer one may read more."""
    import inspect

    from triton.runtime import cache

    source = inspect.getsource(cache)
    digest = source[source.index("def triton_key") :].split("\n\n\n")[0]
    parts = ('"compiler"', '"backends"', '"_C"', "'language'", "open(__file__")
    assert all(part in digest for part in parts)
    assert digest.count("os.path.join(TRITON_PATH") == 4


def test_two_threads_whose_cache_fails_do_not_wait_for_each_other(monkeypatch):
    """One compiles a kernel ahead while another wants to launch it; neither finds Triton's cache in order."""
    inside, anew = Event(), Event()

    def warmup(*_, **__):
        if threading.current_thread().name == "ahead" and not anew.is_set():
            inside.set()  # this thread has the kernel's lock,
            anew.wait(1)  # and the other one, if it may, the folder's
        raise KeyError("damaged")

    @contextmanager
    def nothing_found():
        with kernel_cache.one_at_a_time(kernel_cache.FOLDER):
            if threading.current_thread().name != "ahead":
                anew.set()
            yield

    def run(call):
        with pytest.raises(KeyError):
            call()
        ended.append(threading.current_thread().name)

    def make():
        if not tried:
            tried.append(True)
            inside.wait(5)
            raise KeyError("damaged")
        return kernel_cache.compiled(kernel, (), (1,), {})

    kernel = SimpleNamespace(__module__="vicinal.backends.triton.kernels.some", __name__="kernel", warmup=warmup)
    monkeypatch.setattr(kernel_cache, "settle_key", lambda kernel: None)
    monkeypatch.setattr(kernel_cache, "_nothing_found", nothing_found)
    tried, ended = [], []
    calls = {
        "ahead": lambda: kernel_cache.compiled(kernel, (), (1,), {}),
        "launching": lambda: kernel_cache.loaded(kernel, make, (1,)),
    }
    threads = [Thread(target=run, args=(call,), name=name, daemon=True) for name, call in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == ["ahead", "launching"]
