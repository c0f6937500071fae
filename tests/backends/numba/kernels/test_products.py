"""Matrix products of a tile, in registers, against numpy."""

import numpy as np
import pytest
from llvmlite import ir
from numba import njit

from vicinal.backends.numba.kernels import products, vectors

DTYPES = (np.float32, np.float64)
GUARD = 777.0
LLVM = {np.float32: ir.FloatType(), np.float64: ir.DoubleType()}


@njit
def run_scores(keys, bits, biases, count, channels, queries, into, highest, zero):
    found = products.scores(keys, bits, biases, count, channels, queries, into, vectors.load(highest, zero))
    vectors.store(highest, found)


@njit
def run_sum_keys(weights, keys, count, into, queries, wide, accumulate, zero):
    products.sum_keys(weights, keys, count, into, queries, wide, accumulate, zero)


@njit
def run_sum_queries(weights, rows, queries, into, count, wide, zero):
    products.sum_queries(weights, rows, queries, into, count, wide, zero)


def scattered(rng, count, width, dtype):
    """Rows of a larger array in any order, and the table of their addresses."""
    rows = rng.standard_normal((2 * count, width)).astype(dtype)
    chosen = rng.permutation(2 * count)[:count]
    return rows, chosen, rows.ctypes.data + rows.strides[0] * chosen.astype(np.int64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17, 31, 33, 49, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_scores(dtype, count, biased):
    rng, channels, spare = np.random.default_rng(count), 48, 16
    rows, chosen, table = scattered(rng, count, channels, dtype)
    table = np.concatenate([table, np.full(spare, table[0])])
    bits = rng.integers(0, 1 << 16, count + spare).astype(np.uint16)
    queries = rng.standard_normal((channels, 16)).astype(dtype)
    found, highest = np.full((count + spare, 16), dtype(GUARD)), np.full(16, dtype(0.5))
    added, its_place, biases = scattered(rng, count + spare, 16, dtype)
    arguments = (table, bits, biases if biased else None, count, channels, queries, found, highest)
    run_scores(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments), dtype(0))
    attended = (bits[:count, None] >> np.arange(16) & 1).astype(bool)
    true = rows[chosen].astype(np.float64) @ queries + (added[its_place[:count]] if biased else 0)
    true = np.where(attended, true, -np.inf)
    tolerance = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(found[:count], true, rtol=tolerance, atol=tolerance)
    if count >= products.score_rows(LLVM[dtype]) // 2:
        assert (found[count:] == GUARD).all()
        np.testing.assert_allclose(highest, np.maximum(true.max(0), 0.5), rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", range(1, 9))
@pytest.mark.parametrize("accumulate", [False, True])
def test_sum_keys(dtype, wide, accumulate):
    rng, count = np.random.default_rng(wide), 21
    rows, chosen, table = scattered(rng, count, 16 * wide, dtype)
    weights = rng.random((count, 16)).astype(dtype)
    sums, which, into = scattered(rng, 16, 16 * wide, dtype)
    before = sums.copy()
    run_sum_keys(
        weights.ctypes.data, table.ctypes.data, count, into.ctypes.data, 16, wide, accumulate, dtype(0)
    )  # fmt: skip
    before[which] = accumulate * before[which] + weights.T.astype(np.float64) @ rows[chosen]
    np.testing.assert_allclose(sums, before, rtol=1e3 * np.finfo(dtype).eps, atol=1e2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", range(1, 9))
@pytest.mark.parametrize(("queries", "count"), [(16, 20), (16, 23), (13, 5), (1, 1)])
def test_sum_queries(dtype, wide, queries, count):
    rng, spare = np.random.default_rng(wide), products.ROWS_OF_KEYS - 1
    rows, chosen, table = scattered(rng, 16, 16 * wide, dtype)
    weights = rng.random((count + spare, 16)).astype(dtype)
    sums, which, into = scattered(rng, count, 16 * wide, dtype)
    unread = np.zeros(16 * wide, dtype)
    into = np.concatenate([into, np.full(spare, unread.ctypes.data)])
    before = sums.copy()
    arguments = (weights, table, queries, into, count, wide)
    run_sum_queries(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments), dtype(0))
    before[which] += weights[:count, :queries].astype(np.float64) @ rows[chosen[:queries]]
    np.testing.assert_allclose(sums, before, rtol=1e3 * np.finfo(dtype).eps, atol=1e2 * np.finfo(dtype).eps)
