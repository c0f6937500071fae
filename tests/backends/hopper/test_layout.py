"""The subproblems and descriptors of the Hopper backend reach every token once, each with its own dilation group."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import KINDS, Layout, neighborhoods, part_of
from vicinal.backends.gpu.arguments import placed
from vicinal.backends.hopper import arguments, backward, forward, layout, onepass, part_unsupported
from vicinal.backends.hopper.layout import (
    LARGEST,
    RANK,
    Reach,
    Strided,
    by_units,
    describable,
    describe,
    packed,
    subproblems,
    three,
    with_heads,
)
from vicinal.backends.hopper.tilings import backward_configs, forward_configs, kernel_dims, one_pass_configs
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.geometry.span import Span
from vicinal.geometry.window import window_start, window_stop
from vicinal.problem import Inputs, Problem

CASES = {  # batch, lengths, dilation
    "plain": (2, (5, 6), (1, 1)),
    "1d": (2, (12,), (3,)),
    "1d-ragged": (1, (13,), (3,)),
    "2d-last": (3, (4, 12), (1, 4)),
    "2d-both": (1, (6, 12), (3, 4)),
    "2d-both-batched": (3, (6, 12), (2, 4)),
    "2d-wide-batched": (2, (12, 8), (6, 2)),
    "2d-ragged": (2, (7, 13), (3, 4)),
    "3d": (1, (4, 6, 10), (1, 3, 5)),
    "3d-all": (1, (4, 6, 10), (2, 3, 5)),
    "3d-ragged": (2, (5, 7, 9), (2, 3, 2)),
}
HEADS, COLUMNS = 2, 8


def problem_of(batch: int, lengths: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Problem, torch.Tensor]:
    x = torch.arange(batch * HEADS * COLUMNS * torch.Size(lengths).numel(), dtype=torch.float32)
    x = x.reshape(batch, *lengths, HEADS, COLUMNS)
    neighborhood = Neighborhood.of(len(lengths), 1, 1, dilation)
    return Problem.of(Inputs(x, x, x), [neighborhood], 1.0), x


def strided(x: torch.Tensor) -> Strided:
    return Strided(tuple(x.shape), x.stride())


@pytest.fixture(params=[LARGEST, 150], ids=["whole", "halved"])
def largest(request, monkeypatch):
    """Also with coordinates so small that most problems are cut up."""
    monkeypatch.setattr(layout, "LARGEST", request.param)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_subproblems_reach_every_token_once(case, largest):
    batch, lengths, dilation = case
    problem, x = problem_of(*case)
    token = torch.arange(batch * torch.Size(lengths).numel()).reshape(batch, *lengths)
    seen = []
    for part in subproblems(problem, Reach.of([strided(x)])):
        d = describe(problem, part, strided(x))
        assert d.shape[-1] <= layout.LARGEST
        view = x.as_strided(d.shape, d.strides, d.offset)
        for outer, *group, head in product(range(part.batch), *(range(n) for n in part.groups), range(HEADS)):
            first = part.tokens(group) * d.token_columns + head * COLUMNS
            values = view[outer, ..., first : first + COLUMNS]
            tokens = (values[..., 0] / (HEADS * COLUMNS)).long()
            want = tokens[..., None] * HEADS * COLUMNS + head * COLUMNS + torch.arange(COLUMNS)
            assert torch.equal(values.long(), want)  # a box of tokens holds one head's columns
            seen.append(tokens.flatten())
            # neighbors along an axis of the view are `dilation` tokens apart, within one batch element
            where = torch.stack(torch.unravel_index(tokens, token.shape))
            for a in range(RANK):
                steps = where.diff(dim=a + 1)
                missing = RANK - len(lengths)
                expected = torch.zeros(where.shape[0], dtype=torch.long)
                if a >= missing:
                    expected[1 + a - missing] = three(dilation, 1)[a]
                assert (steps == expected[:, None, None, None]).all()
    assert torch.equal(torch.cat(seen).sort().values, token.flatten().repeat_interleave(HEADS))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_units(case, largest):
    """The same elements as by columns, at the coordinates that the kernel computes, and no columns of another head."""
    problem, x = problem_of(*case)
    tensor = strided(x)
    for part in subproblems(problem, Reach.of([tensor], with_batch=[tensor])):
        plain = describe(problem, part, tensor)
        d = by_units(plain, tensor)
        assert d.shape[0] <= layout.LARGEST
        assert d.shape[1:] == (*plain.shape[1:4], COLUMNS)
        without = x.as_strided(plain.shape, plain.strides, plain.offset)
        last = 0
        for outer, *group, head in product(range(part.batch), *(range(n) for n in part.groups), range(HEADS)):
            first = part.tokens(group) * plain.token_columns + head * COLUMNS
            unit = outer * d.steps.batch + part.tokens(group) * d.steps.token + head * d.steps.head
            view = x.as_strided(d.shape[1:], d.strides[1:], d.offset + unit * d.strides[0])
            assert torch.equal(without[outer, ..., first : first + COLUMNS], view)
            last = max(last, unit)
        assert d.shape[0] == last + 1


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_heads_as_a_dimension(case, largest):
    """The same elements as without, at the coordinates that the kernel computes."""
    problem, x = problem_of(*case)
    tensor = strided(x)
    for part in subproblems(problem, Reach.of([tensor], with_batch=[tensor])):
        plain = describe(problem, part, tensor)
        d = with_heads(plain, tensor)
        assert d.shape[-1] <= layout.LARGEST
        without = x.as_strided(plain.shape, plain.strides, plain.offset)
        view = x.as_strided(d.shape, d.strides, d.offset)
        for outer, *group, head in product(range(part.batch), *(range(n) for n in part.groups), range(HEADS)):
            first = part.tokens(group) * d.token_columns
            a = without[outer, ..., first + head * COLUMNS : first + (head + 1) * COLUMNS]
            column = first + outer * d.batch_columns
            assert torch.equal(a, view[..., head, column : column + COLUMNS])


@pytest.mark.parametrize(
    ("batch", "lengths", "dilation", "count"),
    [
        (1, (4, 11, 10), (1, 11, 5), 1),  # Cosmos-Predict2
        (4, (4, 12, 10), (1, 3, 5), 1),
        (8, (64,), (5,), 2),
        (8, (64, 64), (5, 5), 4),
        (2, (13, 64, 64), (3, 5, 5), 8),
    ],
)
def test_few_subproblems(batch, lengths, dilation, count):
    """One, or two per axis that its dilation does not divide."""
    assert len(subproblems(problem_of(batch, lengths, dilation)[0])) == count


# --- problems of more than 2**31 elements, without their memory ---

LARGE = {  # batch, lengths, heads, kv heads, head dim, columns between tokens, neighborhood's arguments
    "packed heads, packed projection": (48, (128, 128), 16, 8, 128, 4096, {"kernel_size": 7}),
    "packed heads, contiguous": (96, (128, 128), 16, 8, 128, None, {"kernel_size": 7}),
    "dilated, packed projection": (
        *(1, (16, 256, 256), 12, 12, 128, 4 * 12 * 128),
        {"kernel_size": (2, 7, 7), "dilation": (8, 1, 1)},
    ),
    "dilated twice, ragged": (
        *(2, (17, 259, 256), 12, 12, 128, 4 * 12 * 128),
        {"kernel_size": (2, 7, 7), "dilation": (8, 33, 1)},
    ),
    "one token far from the next": (3, (4,), 4, 4, 64, 2**31 - 8, {"kernel_size": 3}),
    "large batch elements": (2, (4, 1024, 1024), 32, 32, 128, 3 * 32 * 128, {"kernel_size": 3}),
}


def large(name: str) -> tuple[Problem, tuple[tuple[int, ...], ...]]:
    batch, lengths, heads, kv_heads, d, token, own = LARGE[name]
    neighborhood = Neighborhood.of(len(lengths), **own).resolve(lengths)
    problem = Problem(batch, lengths, heads, kv_heads, d, d, torch.bfloat16, torch.device("cpu"), (neighborhood,), 0.1)
    each = []
    for h in (heads, kv_heads, kv_heads):
        packed = Strided.contiguous(batch, *lengths, 1, h * d if token is None else token).strides[:-2]
        each.append((*packed, d, 1))
    return problem, tuple(each)


def fits(*values: int) -> bool:
    """Whether 32-bit integers hold them."""
    return all(0 <= value <= LARGEST for value in values)


@pytest.mark.parametrize("name", LARGE)
def test_forward_coordinates_of_large_problems(name):
    """Extents, and whatever `forward` multiplies in 32 bits: columns end where a descriptor does."""
    problem, strides = large(name)
    d = problem.head_dim
    for config in forward_configs(problem):
        covered = 0
        for launcher, _ in forward.launchers(problem, config, strides):
            scalars, groups, _, constants = launcher.arguments[-4:]
            q, k, v, o = (block.description for block in launcher.tensors[:4])
            batch, token, steps = k.shape[0], last_token(groups), scalars.strides
            own = d if constants.heads > 1 else problem.heads * d
            assert token * steps.query + (batch - 1) * steps.query_batch + own == q.shape[-1]
            assert token * steps.output + (batch - 1) * steps.output_batch + own == o.shape[-1]
            assert token * steps.key + problem.kv_heads * d == k.shape[-1]
            assert token * steps.value + problem.kv_heads * d == v.shape[-1]
            assert fits(*q.shape, *k.shape, *v.shape, *o.shape, *steps[:6], scalars.grid.items)
            assert fits(token * steps.lse.token, *(n * s for n, s in zip(scalars.axes.lengths, steps.lse.axes)))
            covered += batch * prod(groups.counts) * prod(scalars.axes.lengths)
        assert covered == problem.batch * prod(problem.lengths)


@pytest.mark.parametrize("name", LARGE)
def test_backward_coordinates_of_large_problems(name):
    """As of the forward; of `prepare` offsets within a row, and of a group's first token."""
    problem, strides = large(name)
    config = backward_configs(problem)[0]
    covered = 0
    for part in backward.launchers(problem, config, strides, backward.Passes(True, True, True, has_grad_lse=True)):
        _, tokens, _, groups, steps, *_ = part.prepare.arguments
        token = last_token(groups)
        assert fits(tokens, token * steps.output.token, token * steps.lse.token, steps.result.row)
        for launcher in (part.keys.launch, part.queries.launch):
            scalars = launcher.arguments[-4]
            blocks = [of.description for of in launcher.tensors if not isinstance(of, int)]
            described = [d for d in blocks if d.token_columns]  # not `prepare`'s results
            for d, step in zip(described, (s for s in scalars.strides if isinstance(s, int))):
                assert token * step + problem.kv_heads * problem.head_dim <= d.shape[-1]
            assert all(fits(*d.shape) for d in blocks)
            assert fits(scalars.grid.items)
        covered += described[0].shape[0] * prod(groups.counts) * tokens
    assert covered == problem.batch * prod(problem.lengths)


@pytest.mark.parametrize("name", LARGE)
def test_one_pass_coordinates_of_large_problems(name):
    """As of two passes; rows of float32 dQ, with a kernel's columns, lie one behind the other: addresses are 64-bit."""
    problem, strides = large(name)
    for config in one_pass_configs(problem)[:1]:
        covered = 0
        for part in onepass.launchers(problem, config, strides, has_grad_lse=True):
            scalars, groups, *_ = part.gradients.launch.arguments
            token = last_token(groups)
            blocks = [of.description for of in part.gradients.launch.tensors if not isinstance(of, int)]
            described = [d for d in blocks if d.token_columns]
            for d, step in zip(described, scalars.strides):
                assert token * step + problem.kv_heads * problem.head_dim <= d.shape[-1]
            assert all(fits(*d.shape) for d in blocks)
            assert fits(scalars.grid.items)
            rows = described[0].shape[0] * prod(groups.counts) * problem.heads
            lengths, blocks, _, _, steps, _, constants = part.finish.arguments
            tokens = prod(lengths)
            assert all(n * size >= length for n, size, length in zip(blocks, constants.block, lengths))
            assert part.prepare.arguments[-2] * backward.CLEARED >= part.addends + 2 * onepass.COUNTER
            assert part.addends == rows * prod(blocks) * 16 * kernel_dims(problem, one_pass=True)[0]
            assert fits(tokens, token * steps.token, rows * prod(blocks))
            covered += described[0].shape[0] * prod(groups.counts) * tokens
        assert covered == problem.batch * prod(problem.lengths)


def test_what_no_part_of_can_be_addressed_is_copied():
    assert layout.suits(Strided((1, 2, 1, 64), (2**32, 2**31 - 8, 64, 1)))
    assert not layout.suits(Strided((1, 2, 1, 64), (2**33, 2**31, 64, 1)))


@pytest.mark.parametrize("rest", [{"boundary": "clip"}, {"is_causal": True}, {"boundary": "clip", "stride": 2**40}])
def test_windows_that_are_longer_than_integers(rest):
    """Act like those of twice the length, which is what the kernels are told; also where heads differ."""
    endless = Neighborhood.of(1, 2**40, **rest)
    shorter = Neighborhood.of(1, 40, **{**rest, "stride": min(rest.get("stride", 1), 40)})
    for rule, i in product((window_start, window_stop), range(20)):
        assert rule(endless.axes[0], 20, i) == rule(shorter.axes[0], 20, i)
    problem = Problem(1, (20,), 2, 2, 64, 64, torch.bfloat16, torch.device("cpu"), (endless, shorter), 0.1)
    assert arguments.head_table(problem).tolist()[0] == arguments.head_table(problem).tolist()[1]
    (part,) = subproblems(problem)
    assert fits(*(n for values in arguments.axes_of(problem, part) for n in values))


def last_token(groups) -> int:
    """The first token of the last dilation group, from the first group's."""
    a, b, c = (n - 1 for n in groups.counts)
    return (a * groups.spread[0] + b) * groups.spread[1] + c


# --- what is copied ---


def test_describable_keeps_slices_of_a_fused_projection():
    query = torch.zeros(2, 4, 5, 3, 2, 64, dtype=torch.bfloat16).unbind(3)[1]
    assert describable(query) is query


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 4, 64, 2, dtype=torch.bfloat16).transpose(-1, -2),
        torch.zeros(2, 2, 4, 64, dtype=torch.bfloat16).transpose(1, 2),
        torch.zeros(1, 4, 2, 64, dtype=torch.bfloat16).expand(2, 4, 2, 64),
        torch.zeros(2, 4, 6, 2, 64, dtype=torch.bfloat16)[:, :, :5],
    ],
    ids=["columns apart", "heads first", "expanded", "rows apart"],
)
def test_describable_copies_what_descriptors_cannot_say(tensor):
    copy = describable(tensor)
    assert copy.is_contiguous()
    assert torch.equal(copy, tensor)


@pytest.mark.parametrize("lengths", [(6,), (4, 5), (2, 3, 4), (1, 5), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 1 << 16))
@settings(max_examples=10, deadline=None)
def test_whatever_lies_in_memory_is_described(lengths, kind, seed):
    """In place or copied: through the descriptors of every subproblem each element is read, as it is."""
    batch, columns = 2, 8
    torch.manual_seed(seed)
    tensor = Layout(kind, seed)(torch.randn(batch, *lengths, HEADS, columns).to(torch.bfloat16))
    ours = describable(tensor)
    assert ours.data_ptr() % 16 == 0
    assert not ours.is_neg()
    problem = Problem.of(Inputs(ours, ours, ours), [Neighborhood.of(len(lengths), 1)], 1.0)
    for part in subproblems(problem, Reach.of([strided(ours)])):
        d = describe(problem, part, strided(ours))
        assert all(s % layout.ALIGNMENT == 0 and s > 0 for s in d.strides[:-1])
        view = ours.as_strided(d.shape, d.strides, ours.storage_offset() + d.offset)
        assert torch.equal(view.reshape(tensor.shape), tensor)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 1 << 16), columns=st.sampled_from((None, 32)))
@settings(max_examples=10, deadline=None)
def test_what_is_read_by_pointers_is_packed(kind, seed, columns):
    """Outputs, log-sum-exps and their gradients."""
    shape = (2, 3, 4, HEADS) if columns is None else (2, 3, 4, HEADS, columns)
    tensor = Layout(kind, seed)(torch.randn(shape))
    ours = packed(tensor)
    assert ours.data_ptr() % 16 == 0
    assert ours.is_contiguous()
    assert not ours.is_neg()
    assert torch.equal(ours, tensor)


@st.composite
def parts(draw):
    """A problem of parts of axes that these kernels take, and its queries' and keys' tokens as numbers."""
    case, lengths = draw(neighborhoods(draw(st.integers(1, 3)), 9, circular=True))
    pairs = enumerate(zip(case.axes, lengths))
    spans = [part_of(draw, [axis], n) if i == 0 or draw(st.booleans()) else None for i, (axis, n) in pairs]
    own = tuple(n if s is None else s.query_length for s, n in zip(spans, lengths))
    case = case.over(spans)
    x = torch.arange(2 * prod(own) * HEADS * COLUMNS, dtype=torch.float32).reshape(2, *own, HEADS, COLUMNS)
    keys = case.key_lengths(own)
    y = torch.arange(2 * prod(keys) * HEADS * COLUMNS, dtype=torch.float32).reshape(2, *keys, HEADS, COLUMNS)
    return Problem.of(Inputs(x, y, y), [case], 1.0), x, y


@settings(max_examples=200)
@given(parts())
def test_parts_of_axes_are_where_they_are_said_to_be(case):
    """Positions of queries and keys along the whole axes, from what kernels are told; each token once."""
    problem, x, y = case
    if not problem.is_part or part_unsupported(problem) is not None:
        return
    spans = three_axes(problem)
    for tensor, keys in ((x, False), (y, True)):
        seen = []
        own = Strided(tuple(tensor.shape), tensor.stride(), keys)
        for part in subproblems(problem, Reach.of([own])):
            d = describe(problem, part, own)
            mine, numbers = part.of_keys if keys else part, arguments.axes_of(problem, part).lengths
            starts, counts = (numbers[9:12], numbers[12:]) if keys else (numbers[3:6], numbers[6:9])
            assert d.shape[1:4] == mine.lengths == counts
            view = tensor.as_strided(d.shape, d.strides, d.offset)
            for outer, *group in product(range(part.batch), *(range(n) for n in part.groups)):
                values = view[outer, ..., part.tokens(group) * d.token_columns] // (HEADS * COLUMNS)
                for place in product(*map(range, counts)):
                    token = int(values[place])
                    shape = (2, *three(tensor.shape[1:-2], 1))
                    where = [int(n) for n in torch.unravel_index(torch.tensor(token), shape)]
                    seen.append(token)
                    for a, (span, dilation) in enumerate(spans):
                        at = where[1 + a] + (span.keys if keys else span.queries)[0]
                        assert at // dilation == place[a] + starts[a]
                        assert numbers[a] == len(range(at % dilation, span.length, dilation))
        assert sorted(seen) == list(range(tensor.shape[:-2].numel()))


def three_axes(problem):
    """Of each of three axes the span, moved on as kernels see it, and the dilation."""
    spans = placed(problem.neighborhoods, problem.lengths)
    dilations = problem.neighborhoods[0].dilation
    missing = RANK - problem.rank
    return [(Span.whole(1), 1)] * missing + list(zip(spans, dilations))


@pytest.mark.parametrize(("lengths", "expected"), [((128, 160), 132), ((721, 1440), 33120)])
def test_programs_of_long_maps_take_few_items_each(lengths, expected):
    """Persistent ones would drift apart over a thousand turns."""
    neighborhood = Neighborhood.of(2, 31).resolve(lengths)
    problem = Problem(1, lengths, 16, 16, 48, 48, torch.bfloat16, torch.device("cpu"), (neighborhood,), 0.1)
    config = forward_configs(problem)[0]
    assert config.persistent
    strides = tuple(torch.empty((1, *lengths, 16, 48), device="meta").stride() for _ in range(3))
    (launcher, _), *_ = forward.launchers(problem, config, strides, 132)
    assert launcher.grid[0] == expected
