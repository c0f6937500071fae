"""Queries on another grid: where they sit."""

from itertools import product

import pytest

from vicinal.geometry.grid import first_query_at, key_at, most_queries


@pytest.mark.parametrize(("queries", "keys"), [(a, b) for a, b in product((1, 2, 3, 5, 8, 12, 29), repeat=2)])
def test_queries_sit_where_their_cells_middle_is(queries, keys):
    sits = [int((i + 0.5) / queries * keys + 1e-9) for i in range(queries)]
    assert [key_at(i, queries, keys) for i in range(queries)] == sits
    assert [first_query_at(k, queries, keys) for k in range(keys)] == [sum(s < k for s in sits) for k in range(keys)]
    assert max(map(sits.count, sits)) <= most_queries(queries, keys)
