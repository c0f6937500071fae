"""Kernels compiled ahead, on a GPU: what was compiled is what is launched."""

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

pytestmark = pytest.mark.gpu

CALL = """
    import os, pathlib, time
    import torch
    import vicinal
    from vicinal import Neighborhood
    from vicinal.bench.cases import Case
    def kept():
        return {p.name for p in pathlib.Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin")}
    neighborhood = Neighborhood.of(2, 7).resolve((32, 40))
    problem = Case("", (32, 40), neighborhood, 2, 64, dtype=torch.bfloat16).problem("cuda")
    tensors = [torch.randn(1, 32, 40, 2, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    def call(backend):
        output = vicinal.neighborhood_attention(*tensors, 7, backend=backend)
        output.backward(torch.ones_like(output))
        torch.cuda.synchronize()
"""


def run(folder, script):
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    text = textwrap.dedent(CALL) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.cubin")}


def test_calls_launch_what_was_compiled(tmp_path):
    run(tmp_path, "vicinal.precompile(problem)")
    before = files(tmp_path)
    assert before
    run(tmp_path, "call(None)")
    assert files(tmp_path) == before


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="the target is sm_90"
)
def test_calls_launch_what_was_compiled_without_a_gpu(tmp_path):
    script = """
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        vicinal.precompile(problem, target="sm_90", processors=processors)
    """
    run(tmp_path, script)
    before = files(tmp_path)
    assert before
    run(tmp_path, "call(None)")
    assert files(tmp_path) == before


def test_a_forward_compiles_its_backward(tmp_path):
    script = """
        output = vicinal.neighborhood_attention(*tensors, 7)
        import threading
        for thread in threading.enumerate():
            if thread.name == "vicinal-compiling":
                thread.join()
        compiled = kept()
        output.backward(torch.ones_like(output))
        torch.cuda.synchronize()
        assert kept() == compiled, kept() - compiled
    """
    run(tmp_path, script)


def test_it_leaves_the_right_gradients():
    from vicinal import na2d

    tensors = [torch.randn(1, 19, 23, 2, 64, device="cuda", dtype=torch.float16) for _ in range(3)]
    leaves = [t.requires_grad_() for t in tensors]
    grads = torch.autograd.grad(na2d(*leaves, 5).square().sum(), leaves)
    for thread in threading.enumerate():
        if thread.name == "vicinal-compiling":
            thread.join()
    again = torch.autograd.grad(na2d(*leaves, 5).square().sum(), leaves)
    for one, other in zip(grads, again, strict=True):
        torch.testing.assert_close(one, other)
