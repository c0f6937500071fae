"""Matrix products of a tile of 16 queries, in registers: scores from rows of keys, and sums of rows by weights.

`scores` puts a query in each lane: a row of scores is the sum over channels of a key's number times 16 queries'.
`sum_keys` and `sum_queries` put a channel in each lane. Rows of queries, keys and values are read where they lie, from
addresses in a table. How many rows are in registers at a time depends on the machine's (`score_rows`, `sum_shapes`).
"""

from __future__ import annotations

from math import inf

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from vicinal.backends.numba.kernels.vectors import (
    BITS,
    FMA,
    INT,
    LANES,
    LOAD,
    LOOP,
    MAX,
    SELECT,
    SPLAT,
    STORE,
    Vector,
    advanced,
    itemsize,
    number,
    registers,
    registers_per_vector,
    size_of,
    vector_of,
)

UNROLL = 2  # channels
MOST_SCORES = 16  # rows in registers
FEWEST_SCORES = MOST_SCORES // 2  # rows that are computed, where there are fewer
ROWS_OF_KEYS = 4  # of gradients in registers


def score_rows(element) -> int:
    """Most rows of scores in registers."""
    each = registers_per_vector(element)
    return max(2, min(MOST_SCORES, (registers()[1] - each - 1) // each // 2 * 2))


def sum_shapes(element, most_rows: int) -> list[tuple[int, int]]:
    """(vectors, rows) of sums in registers, most vectors first, one vector last."""
    each, (_, count) = registers_per_vector(element), registers()
    shapes = []
    for vectors in (4, 2, 1):
        rows = [r for r in (16, 8, 4, 2) if r * vectors <= 16 and ((r + 1) * vectors + 1) * each <= count]
        if vectors == 1:
            rows.append(2)
        if (rows and min(rows[0], most_rows) >= min(4, most_rows)) or vectors == 1:
            shapes.append((vectors, min(rows[0], most_rows)))
    return shapes


@njit(error_model="numpy")
def scores(keys, bits, biases, count, channels, queries, into, highest):
    """Scores `[count, 16]` to `into` and, with `highest`, the highest of each query.

    `keys`: table of addresses; `bits`: for each key, which queries attend to it (the others' scores are -inf);
    `biases`: table of addresses of 16 numbers to add to a key's scores, or None; `queries`: `[channels, 16]`, a column
    each. Where `count` is less than `FEWEST_SCORES`, so many may be computed:
    let the tables have them, without queries.
    """
    most = most_scores(highest)
    count = max(count, most // 2)
    blocks = (count + most - 1) // most
    done = 0
    while blocks > 0:
        rows = (count - done + blocks - 1) // blocks
        biases_now = advanced(biases, 8 * done)
        highest = _score_block(rows, keys + 8 * done, bits + 2 * done, biases_now, channels, queries, into, highest)
        into += rows * LANES * itemsize(highest)
        done += rows
        blocks -= 1
    return highest


@intrinsic
def masked(typingctx, zero):
    """The score of a key that is not attended to, in every lane."""

    def generate(context, builder, signature, args):
        return number(vector_of(args[0].type), -inf)

    return Vector(zero)(zero), generate


@intrinsic
def most_scores(typingctx, like):
    """`score_rows` of a vector's dtype."""

    def generate(context, builder, signature, args):
        return ir.Constant(INT, score_rows(args[0].type.element))

    return types.int64(like), generate


@intrinsic
def _score_block(typingctx, rows, keys, bits, biases, channels, queries, into, highest):
    """`scores` of so many keys as fit into registers at once."""
    has_biases = not isinstance(biases, types.NoneType)

    def generate(context, builder, signature, args):
        rows, keys, bits, biases, channels, queries, into, highest = args
        kind, element = highest.type, highest.type.element
        most, size = score_rows(element), size_of(element)

        def block(count):
            bases = [LOAD(builder, INT, keys, 8 * i) for i in range(count)]

            def add_channels(channel, sums):
                sums = list(sums)
                byte = builder.mul(channel, ir.Constant(INT, size))
                column = builder.add(queries, builder.mul(byte, ir.Constant(INT, LANES)))
                lanes = [LOAD(builder, kind, column, u * LANES * size) for u in range(UNROLL)]
                for i, base in enumerate(bases):
                    for u in range(UNROLL):
                        one = SPLAT(builder, LOAD(builder, element, builder.add(base, byte), u * size))
                        sums[i] = FMA(builder, one, lanes[u], sums[i])
                return sums

            start = [number(kind, 0.0)] * count
            if has_biases:
                start = [LOAD(builder, kind, LOAD(builder, INT, biases, 8 * i)) for i in range(count)]
            sums = LOOP(builder, channels, UNROLL, start, add_channels)
            minus = number(kind, -inf)
            found = []
            for i, row in enumerate(sums):
                found.append(SELECT(builder, LOAD(builder, BITS, bits, 2 * i), row, minus))
                STORE(builder, found[-1], into, i * LANES * size)
            while len(found) > 1:
                found = [MAX(builder, *found[i : i + 2]) for i in range(0, len(found) - 1, 2)] + (
                    found[-1:] if len(found) % 2 else []
                )
            return MAX(builder, highest, found[0])

        return _switch(builder, rows, range(most // 2, most + 1), block, kind)

    return highest(*[types.int64] * 3, biases, *[types.int64] * 3, highest), generate


@njit(error_model="numpy")
def sum_keys(weights, keys, count, into, queries, vectors, accumulate, zero):
    """`into[q] (+)= sum_k weights[k, q] keys[k]` for the first `queries` of a tile: `vectors * 16` channels each.

    `keys`, `into`: tables of addresses.
    """
    offset = 0
    while vectors > 0:
        done = _sum_keys(vectors, weights, keys, offset, count, into, queries, accumulate, zero)
        vectors -= done
        offset += done * LANES * itemsize(zero)


@njit(error_model="numpy")
def sum_queries(weights, rows, queries, into, count, vectors, zero):
    """`into[k] += sum_q weights[k, q] rows[q]` over the first `queries` of a tile: `vectors * 16` channels each.

    `rows`, `into`: tables of addresses. `count` keys, and up to `ROWS_OF_KEYS - 1` after them: let `into` have them.
    """
    offset = 0
    while vectors > 0:
        done = _sum_queries(vectors, weights, rows, offset, queries, into, count, True, zero)
        vectors -= done
        offset += done * LANES * itemsize(zero)


def _make_sum(by_key: bool):
    """The intrinsic of `sum_keys` or `sum_queries` for as many of `vectors` as fit; how many those were."""

    @intrinsic
    def summed(typingctx, vectors, weights, rows, offset, count, into, sums, accumulate, zero):
        def generate(context, builder, signature, args):
            vectors, weights, rows, offset, count, into, sums, accumulate, zero = args
            element = zero.type
            kind, size = vector_of(element), size_of(element)
            over_rows, over_sums = (LANES * size, size) if by_key else (size, LANES * size)
            shapes = sum_shapes(element, LANES if by_key else ROWS_OF_KEYS)

            def shape(wide, high):
                def block(first, _):
                    table = builder.add(into, builder.mul(first, ir.Constant(INT, 8)))
                    bases = [builder.add(LOAD(builder, INT, table, 8 * i), offset) for i in range(high)]
                    column = builder.add(weights, builder.mul(first, ir.Constant(INT, over_sums)))

                    def add_row(row, values):
                        values = list(values)
                        base = LOAD(builder, INT, builder.add(rows, builder.mul(row, ir.Constant(INT, 8))))
                        base = builder.add(base, offset)
                        numbers = [LOAD(builder, kind, base, j * LANES * size) for j in range(wide)]
                        weight = builder.add(column, builder.mul(row, ir.Constant(INT, over_rows)))
                        for i in range(high):
                            one = SPLAT(builder, LOAD(builder, element, weight, i * over_sums))
                            for j in range(wide):
                                values[i * wide + j] = FMA(builder, one, numbers[j], values[i * wide + j])
                        return values

                    values = LOOP(builder, count, 1, [number(kind, 0.0)] * (high * wide), add_row)
                    places = [(base, j * LANES * size) for base in bases for j in range(wide)]
                    before = builder.block
                    # Last, not first: sums of sums lose less to rounding.
                    with builder.if_then(accumulate):
                        added = [builder.fadd(v, LOAD(builder, kind, *p)) for v, p in zip(values, places)]
                        loaded = builder.block
                    finals = [builder.phi(kind) for _ in values]
                    for final, value, more in zip(finals, values, added):
                        final.add_incoming(value, before)
                        final.add_incoming(more, loaded)
                    for final, place in zip(finals, places):
                        STORE(builder, final, *place)
                    return []

                LOOP(builder, sums, high, [], block)
                return ir.Constant(INT, wide)

            chosen = ir.Constant(INT, shapes[-1][0])
            for wide, _ in shapes[-2::-1]:
                fits = builder.icmp_signed(">=", vectors, ir.Constant(INT, wide))
                chosen = builder.select(fits, ir.Constant(INT, wide), chosen)
            high = dict(shapes)
            return _switch(builder, chosen, list(high), lambda wide: shape(wide, high[wide]), INT)

        return types.int64(*[types.int64] * 7, types.boolean, zero), generate

    return summed


_sum_keys, _sum_queries = _make_sum(True), _make_sum(False)


def _switch(builder, value, cases, make, kind):
    """`make(case)` for the case that `value` is; which must be one."""
    cases = list(cases)
    after, blocks = builder.append_basic_block("chosen"), []
    impossible = builder.append_basic_block("impossible")
    switch = builder.switch(value, impossible)
    for case in cases:
        block = builder.append_basic_block(f"case{case}")
        switch.add_case(ir.Constant(INT, case), block)
        builder.position_at_end(block)
        result = make(case)
        blocks.append((result, builder.block))
        builder.branch(after)
    builder.position_at_end(impossible)
    builder.unreachable()
    builder.position_at_end(after)
    chosen = builder.phi(kind)
    for result, block in blocks:
        chosen.add_incoming(result, block)
    return chosen
