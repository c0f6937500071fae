"""What is compiled ahead of a call is what the call launches: the same kernels, on tensors of the same dtypes."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

pytest.importorskip("triton")

from vicinal.backends import hopper
from vicinal.backends import triton as triton_backend
from vicinal.backends.gpu import tables
from vicinal.backends.gpu.launch import Launch
from vicinal.backends.hopper.launch import Launcher
from vicinal.backends.triton import classes
from vicinal.backends.triton.classes import have_classes
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.estimate import Kernel
from vicinal.bench.cases import Case, random_inputs
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Upstream, Wanted, stand_ins

OF = Neighborhood.of
FEATURES = {
    "plain": {},
    "grouped heads": {"kv_heads": 1},
    "a neighborhood per head": {"neighborhoods": (OF(2, 3), OF(2, 5))},
    "per head and grouped": {"neighborhoods": (OF(2, 3), OF(2, 5)), "kv_heads": 1},
    "other values": {"head_dim": 192, "value_dim": 128},
    "dilated": {"neighborhoods": (OF(2, 3, dilation=(2, 3)).resolve((9, 12)),)},
}
HOPPER = FEATURES | {
    "additional": {"additional": 3},
    "a dilation per head": {"neighborhoods": (OF(2, 3), OF(2, 3, dilation=2)), "additional": 3},
    "padded heads": {"head_dim": 40, "value_dim": 56, "additional": 128},
    "a key mask": {"has_key_mask": True},
}
MASKED = {"has_key_mask": True}
MORE = {
    "bias": {"has_rpb": True},
    "additional": {"additional": 3},
    "both": {"has_rpb": True, "additional": 3},
    "a key mask": MASKED,
    "a key mask, grouped heads": MASKED | {"kv_heads": 1},
    "a key mask, a neighborhood per head": MASKED | FEATURES["per head and grouped"],
    "windows per token": {"has_window_sizes": True},
}
CLASSES = {
    "plain": {},
    "grouped heads": {"kv_heads": 1},
    "bias": {"has_rpb": True},
    "additional": {"additional": 3},
    "a key mask": MASKED,
    "float32": {"dtype": torch.float32},
}
GRADIENTS = {"all": "query key value", "query": "query", "keys": "key", "values": "value", "none": ""}


def problem_of(fields):
    neighborhood = OF(2, 3).resolve((9, 12))
    return replace(Case("", (9, 12), neighborhood, 2, 32, 2, dtype=torch.float16).problem("cpu"), **fields)


def inputs_of(problem):
    inputs, shapes = random_inputs(problem), stand_ins(problem)
    if problem.has_key_mask:
        inputs = inputs._replace(key_mask=torch.ones(shapes.key_mask.shape, dtype=torch.bool))
    if problem.has_window_sizes:
        inputs = inputs._replace(window_sizes=torch.ones(shapes.window_sizes.shape, dtype=torch.int32))
    return inputs


def wanted_of(inputs, names):
    if names == "query key value":
        return Wanted.of(inputs)
    return Wanted(*(name in names.split() for name in Wanted._fields))


def dtypes(tensors):
    return [None if t is None else t.dtype for t in tensors]


def compiled(jobs):
    """Kernel and tensors of what would be compiled."""
    return sorted(((job.func.__self__.kernel.__name__, dtypes(_flat(job.args))) for job in jobs), key=str)


def _flat(arguments):
    return arguments[0] if isinstance(arguments[0], tuple) else arguments


@pytest.fixture
def launched(monkeypatch):
    """Kernel and tensors of what is launched, which is nothing."""
    seen = []
    monkeypatch.setattr(
        Launch, "__call__", lambda self, tensors, aligned: seen.append((self.kernel.__name__, dtypes(tensors)))
    )
    monkeypatch.setattr(Launcher, "__call__", lambda self, *ts: seen.append((self.kernel.__name__, dtypes(ts))))
    return seen


def check(backend, problem, names, launched, backward_config=None, forward_config=None):
    inputs = inputs_of(problem)
    wanted = wanted_of(inputs, names)
    tables._tables.clear()  # what is computed once, for many calls, is launched by the first
    config = forward_config or backend.configs(problem, "forward")[0]
    output, lse = backend.forward(problem, config, inputs)
    assert compiled(backend.forward_kernels(problem, config, inputs)) == sorted(launched, key=str)
    launched.clear()
    tables._tables.clear()
    config = backward_config or backend.configs(problem, "backward")[0]
    backend.backward(problem, config, inputs, Upstream(output, lse, output), wanted)
    assert compiled(backend.backward_kernels(problem, config, inputs, wanted)) == sorted(launched, key=str)
    metas = Inputs(*(None if t is None else t.to("meta") for t in inputs))
    assert len(backend.backward_kernels(problem, config, metas, wanted)) == len(launched)


@pytest.mark.parametrize("names", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("fields", [*FEATURES.values(), *MORE.values()], ids=[*FEATURES, *MORE])
def test_triton(fields, names, launched):
    check(triton_backend.BACKEND, problem_of(fields), names, launched)


@pytest.mark.parametrize("names", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("fields", CLASSES.values(), ids=CLASSES)
def test_triton_of_classes(fields, names, launched, monkeypatch):
    monkeypatch.setattr(classes, "LEAST_TILES", 0)
    tiling = Tiling((4, 4), (1, 16), of_classes=True)
    problem = problem_of(fields)
    assert all(have_classes(problem, tiling, kernel) for kernel in get_args(Kernel))
    check(type(triton_backend.BACKEND)(), problem, names, launched, GradientTilings(tiling, tiling), tiling)


@pytest.mark.parametrize("names", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("fields", HOPPER.values(), ids=HOPPER)
def test_hopper_in_two_passes(fields, names, launched):
    problem = problem_of(fields)
    check(hopper.BACKEND, problem, names, launched, hopper.two_passes(problem))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("names", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("feature", [name for name in HOPPER if name != "other values"])
def test_hopper_in_one_pass(feature, names, launched, deterministic):
    """Or in two, where one is not allowed."""
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    problem = problem_of({"head_dim": 64, "value_dim": 64} | HOPPER[feature])
    one = next(c for c in hopper.BACKEND.configs(problem, "backward") if c.one_pass)
    check(hopper.BACKEND, problem, names, launched, one)
