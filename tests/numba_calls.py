"""What tests of the numba backend share: its results for a call, and what they are compared by."""

from __future__ import annotations

import torch

from closeness import gradients_of, random_gradients
from strategies import Call
from vicinal.backends.numba import BACKEND
from vicinal.backends.numba.config import NumbaConfig, head_sets, shapes
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Problem

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def any_config(problem, seed):
    """One with any tiles, not only those listed, for every set of heads."""
    found = [shapes(own.axes, problem.lengths) for own in head_sets(problem)]
    return NumbaConfig(*zip(*(own[(seed + i) % len(own)] for i, own in enumerate(found))))


def run(inputs, neighborhoods, scale, seed, with_grad_lse=True, config=None):
    """Output, log-sum-exp and gradients of the backend, and what came from above."""
    problem = Problem.of(inputs, neighborhoods, scale)
    assert BACKEND.unsupported(problem) is None
    output, lse = BACKEND.forward(problem, config or any_config(problem, seed), inputs)
    grad, grad_lse = random_gradients(output, lse, seed, with_grad_lse)
    config = config or any_config(problem, seed + 1)
    grads = gradients_of(BACKEND, problem, config, inputs, output, lse, grad, grad_lse)
    return [output, lse, *(g for g in grads if g is not None)], grad, grad_lse


def contiguous(tensor):
    return None if tensor is None else tensor.resolve_neg().clone(memory_format=torch.contiguous_format)


def present(tensors):
    return [t for t in tensors if t is not None]


def assert_same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def plane():
    call = Call((Neighborhood((Axis(5, dilation=2), Axis(4))),), (14, 13), 1, 2, 1, 24, 40, 2, False, 3)
    return call, call.inputs(torch.float32)
