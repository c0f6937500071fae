"""Vectors of 16 lanes against numpy."""

import numpy as np
import pytest
from numba import njit

from vicinal.backends.numba.kernels import vectors as v

DTYPES = (np.float32, np.float64)


@njit
def run_exp(x, into, zero):
    v.store(into, v.exp(v.load(x, zero)))


@njit
def run_transpose(table, offset, factor, into):
    v.transpose(table, offset, factor, into)


@njit
def run_add_atomically(address, number):
    return v.add_atomically(address, number)


def addresses(rows):
    """A table of the addresses of an array's rows."""
    return rows.ctypes.data + rows.strides[0] * np.arange(len(rows), dtype=np.int64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("low", [-87.0, -1.0, -1e-3])
def test_exp_is_exact_to_its_last_bits_near_0(dtype, low):
    x = np.linspace(low, 0, 16).astype(dtype)
    found = np.empty_like(x)
    run_exp(x.ctypes.data, found.ctypes.data, dtype(0))
    true = np.exp(x.astype(np.longdouble))
    assert (np.abs(found - true) <= (2 - x / 4) * np.finfo(dtype).eps * true).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_of_what_is_masked_and_of_what_is_no_number(dtype):
    x = np.array([-np.inf, np.finfo(dtype).min, -1e5, np.nan] * 4, dtype)
    found = np.empty_like(x)
    run_exp(x.ctypes.data, found.ctypes.data, dtype(0))
    np.testing.assert_array_equal(found, np.array([0, 0, 0, np.nan] * 4, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose(dtype):
    rows = np.random.default_rng(0).standard_normal((16, 48)).astype(dtype)
    found = np.empty((16, 16), dtype)
    run_transpose(addresses(rows).ctypes.data, 16 * rows.itemsize, dtype(0.5), found.ctypes.data)
    np.testing.assert_array_equal(found, rows[:, 16:32].T / 2)


def test_counters_tell_what_was_before():
    counter = np.array([5], np.int64)
    assert [run_add_atomically(counter.ctypes.data, 3) for _ in range(2)] == [5, 8]
    assert counter[0] == 11


@njit
def run_logarithm(x, into, zero):
    v.store(into, v.logarithm(v.load(x, zero)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), [(0.5, 2), (1, 1e5), (1e-30, 1e30), (1, 1.001)])
def test_logarithm_is_exact_to_its_last_bits(dtype, low, high):
    x = np.geomspace(low, high, 16).astype(dtype)
    found = np.empty_like(x)
    run_logarithm(x.ctypes.data, found.ctypes.data, dtype(0))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found, np.log(x.astype(np.longdouble)), rtol=4 * eps, atol=eps)
