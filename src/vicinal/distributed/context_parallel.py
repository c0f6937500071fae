"""Context parallelism: each rank attends with the queries it holds, to keys of its own and of a halo that others send.

Where it is worth it, queries whose windows lie in the shard are computed while the halo travels, then those at its
borders, over spans of the whole axes: no query is computed twice, and nothing is merged. The backward pass goes the
other way: borders first, whose keys' gradients go home while the others are computed.

All of it is the torch operators `vicinal::attend_shards` and `vicinal::attend_shards_backward`, so that compiled code
has it too. They have first derivatives only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vicinal.circular import silent
from vicinal.declaring import operator
from vicinal.distributed.agreement import check_together
from vicinal.distributed.exchange import Exchange, Pair, cut, gathered, scattered
from vicinal.distributed.halo import LEAST_INSIDE, NEVER, Box, Part, common, halo
from vicinal.distributed.layout import Layout
from vicinal.geometry.neighborhood import Neighborhood, decode, encode
from vicinal.geometry.work import backward_flops, call_scores, forward_flops
from vicinal.operators import attend as attend_once
from vicinal.operators import attend_backward
from vicinal.problem import Inputs, Wanted, lse_dtype
from vicinal.torch_internals import wait

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? additional_keys, Tensor? additional_values, Tensor? rpb, "
    "Tensor? key_mask"
)
_COUNT = len(_INPUTS.split(","))
_SETTINGS = (
    "int[] neighborhoods, float scale, str? backend, int[] lengths, int[] shards, int rank, str group, "
    "float least_inside"
)

attend_shards = operator("attend_shards", f"({_INPUTS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor)")
attend_shards_backward = operator(
    "attend_shards_backward",
    f"(Tensor grad_output, Tensor? grad_lse, Tensor output, Tensor lse, Tensor came, {_INPUTS}, {_SETTINGS}, "
    "bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def attend(
    inputs: Inputs,
    neighborhoods: tuple[Neighborhood, ...],
    scale: float | None,
    layout: Layout,
    backend: str | None = None,
    overlap: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of our queries; every rank of the layout calls it with its own shard.

    Gradients of additional keys and values and of the bias are this rank's share: their sum over the ranks is the
    whole, as of any parameter that they all have.

    Raises:
        TypeError, ValueError: there are windows per token; or see `vicinal.distributed.agreement.check_together`.
    """
    if inputs.window_sizes is not None:
        raise ValueError("window_sizes must be None where ranks hold shards of a map: backends with spans have none")
    factor = inputs.query.shape[-1] ** -0.5 if scale is None else float(scale)
    if all(n == neighborhoods[0] for n in neighborhoods):
        neighborhoods = neighborhoods[:1]
    check_together(inputs, neighborhoods, factor, layout, backend)
    shards = [n for box in layout.shards for interval in box for n in interval]
    code, group = encode(neighborhoods), layout.group.group_name
    least = layout.least_inside if overlap is None else LEAST_INSIDE if overlap else NEVER
    settings = (code, factor, backend, list(layout.lengths), shards, layout.rank, group, least)
    if (gone := silent(inputs)) is None:
        output, lse, _ = attend_shards(*inputs[:_COUNT], *settings)
        return output, lse
    inputs = inputs._replace(query=inputs.query.masked_fill(gone[..., None], 0.0))
    output, lse, _ = attend_shards(*inputs[:_COUNT], *settings)
    return output.masked_fill(gone[..., None], 0.0), lse.masked_fill(gone, float("-inf"))


@dataclass(frozen=True, eq=False)
class Plan:
    """What a rank does: its part of the exchange, and its launches, each with the code of its neighborhoods."""

    exchange: Exchange
    parts: tuple[tuple[Part, list[int]], ...]
    scale: float
    backend: str | None

    @property
    def shard(self) -> Box:
        return self.exchange.halo.shards[self.exchange.rank]


def plan_of(
    code: Sequence[int],
    scale: float,
    backend: str | None,
    lengths: Sequence[int],
    shards: Sequence[int],
    rank: int,
    group: str,
    least_inside: float,
) -> Plan:
    """The plan for the operators' settings, made once."""
    return _plan(tuple(code), scale, backend, tuple(lengths), tuple(shards), rank, group, least_inside)


@lru_cache(maxsize=1024)
def _plan(
    code: tuple[int, ...],
    scale: float,
    backend: str | None,
    lengths: tuple[int, ...],
    shards: tuple[int, ...],
    rank: int,
    group: str,
    least_inside: float,
) -> Plan:
    ends = iter(zip(shards[::2], shards[1::2]))
    boxes = tuple(zip(*[ends] * len(lengths)))
    found = halo(decode(code, len(lengths)), lengths, boxes)
    parts = [
        (part, encode([n.over(found.spans(part)) for n in found.neighborhoods]))
        for part in found.parts(rank, least_inside)
    ]
    return Plan(Exchange(found, rank, group), tuple(parts), scale, backend)


# The operators ----------------------------------------------------------------------------------------------------


@torch.library.impl("vicinal::attend_shards", "default")
def _attend(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp, and what came of other ranks, for the backward pass."""
    inputs, plan = Inputs(*args[:_COUNT]), plan_of(*args[_COUNT:])
    exchange = plan.exchange
    held = Pair(inputs.key, inputs.value)
    sources = exchange.own(held)
    coming = None if exchange.is_silent else exchange.start(held)
    came, results = None, []
    for (part, code), mask in zip(plan.parts, _masks(plan, inputs)):
        if not part.inside and coming is not None and came is None:
            came = wait(coming)
            sources += exchange.others(came, held)
        keys = gathered(sources, part.keys)
        query = cut(inputs.query, part.queries, plan.shard)
        own = Inputs(query, *keys, *inputs[3:6], key_mask=mask)
        results.append(attend_once(*own, code, plan.scale, plan.backend))
    if came is None:  # nothing of it is needed here
        came = inputs.key.new_empty(0) if coming is None else wait(coming)
    return (*_together(plan, results, inputs), came)


@torch.library.impl("vicinal::attend_shards_backward", "default")
def _attend_backward(
    grad_output: Tensor, grad_lse: Tensor | None, output: Tensor, lse: Tensor, came: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    inputs, plan, needed = Inputs(*args[:_COUNT]), plan_of(*args[_COUNT:-1]), Wanted(*args[-1])
    exchange, wants_keys = plan.exchange, needed.key or needed.value
    wanted = needed._replace(key=wants_keys, value=wants_keys)
    held = Pair(inputs.key, inputs.value)
    sources = exchange.own(held) + exchange.others(came, held)
    theirs = torch.zeros_like(came) if wants_keys and not exchange.is_silent else None
    home: Tensor | None = None
    queries: list[Tensor] = []
    own: list[tuple[Part, Pair]] = []
    shared: list[Tensor | None] = [None] * 3
    for (part, code), mask in reversed(list(zip(plan.parts, _masks(plan, inputs)))):
        if part.inside and theirs is not None:
            home = exchange.start_home(theirs, held)
        above = (grad_output, grad_lse, output, lse)
        cuts = [None if t is None else cut(t, part.queries, plan.shard) for t in above]
        query, keys = cut(inputs.query, part.queries, plan.shard), gathered(sources, part.keys)
        given = Inputs(query, *keys, *inputs[3:6], key_mask=mask)
        settings = (code, plan.scale, plan.backend, list(wanted))
        d_query, d_key, d_value, *rest = attend_backward(*cuts, *given, *settings)
        queries.append(d_query)
        if wants_keys:
            own.append((part, Pair(d_key, d_value)))
            if theirs is not None and not part.inside:
                scattered(Pair(d_key, d_value), part.keys, exchange.others(theirs, held))
        for i, (grad, wants) in enumerate(zip(rest, wanted[3:])):
            if wants:
                before = shared[i]
                shared[i] = grad if before is None else before + grad
    found: list[Tensor | None] = [_whole_query(plan, queries, inputs) if needed.query else None, None, None, *shared]
    if wants_keys:
        if theirs is not None and home is None:
            home = exchange.start_home(theirs, held)
        found[1:3] = total = _own_gradients(exchange, own, held)
        if home is not None:
            exchange.add_home(wait(home), total)
    for i, (t, wants) in enumerate(zip(inputs.numbers, needed)):
        if not wants or t is None:
            found[i] = grad_output.new_empty(0)
        elif found[i] is None:  # a rank without queries
            found[i] = torch.zeros_like(t)
    return tuple(found)  # type: ignore[arg-type]


@torch.library.register_fake("vicinal::attend_shards")
def _attend_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = args[:3]
    exchange = plan_of(*args[_COUNT:]).exchange
    tokens = exchange.halo.tokens_received(exchange.rank)
    came = key.new_empty(tokens * key.shape[0] * (prod(key.shape[-2:]) + prod(value.shape[-2:])))
    output = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return output, query.new_empty(query.shape[:-1], dtype=lse_dtype(query.dtype)), came


@torch.library.register_fake("vicinal::attend_shards_backward")
def _attend_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    inputs, wanted = Inputs(*args[5 : 5 + _COUNT]).numbers, args[-1]
    return tuple(
        t.new_empty(t.shape) if wants and t is not None else args[0].new_empty(0) for t, wants in zip(inputs, wanted)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*inputs[:_COUNT], *output)
    ctx.settings = inputs[_COUNT:]


def _first(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, output, lse, came = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:6])
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    grads = attend_shards_backward(grad_output, grad_lse, output, lse, came, *inputs, *ctx.settings, wanted)
    rest = [None] * (len(ctx.needs_input_grad) - len(wanted))
    return (*(grad if wants else None for wants, grad in zip(wanted, grads)), *rest)


def _second(ctx: Any, *_: Any) -> NoReturn:
    raise RuntimeError("attention of a map that ranks hold together has first derivatives only")


torch.library.register_autograd("vicinal::attend_shards", _first, setup_context=_save)
torch.library.register_autograd("vicinal::attend_shards_backward", _second)


@register_flop_formula(torch.ops.vicinal.attend_shards)
def _flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return forward_flops(_scores(query, *args), query[-1], value[-1])


@register_flop_formula(torch.ops.vicinal.attend_shards_backward)
def _backward_flops(grad_output: Any, *args: Any, **kwargs: Any) -> int:
    query, _, value, *rest = args[4:]  # after what is saved
    return backward_flops(_scores(query, *rest), query[-1], value[-1])


def _scores(query: Any, extra_keys: Any, extra_values: Any, rpb: Any, mask: Any, *settings: Any) -> int:
    """Useful scores of our queries, from shapes (the flop counter passes shapes for tensors)."""
    batch, *lengths, heads, _head_dim = query
    plan = plan_of(*settings[:8])
    additional = 0 if extra_keys is None else extra_keys[1]
    found = 0
    for part, code in plan.parts:
        own = tuple(stop - start for start, stop in part.queries)
        found += batch * call_scores(decode(code, len(lengths)), own, heads, additional)
    return found


def _masks(plan: Plan, inputs: Inputs) -> list[Tensor | None]:
    """Which keys of every part are there, of other ranks too, in an exchange of its own; None without a mask."""
    if inputs.key_mask is None:
        return [None] * len(plan.parts)
    bits = inputs.key_mask.to(torch.uint8)[..., None, None]
    held, exchange = Pair(bits, bits[..., :0]), plan.exchange
    sources = exchange.own(held)
    if not exchange.is_silent:
        sources += exchange.others(wait(exchange.start(held)), held)
    return [gathered(sources, part.keys).key[..., 0, 0] != 0 for part, _ in plan.parts]


def _together(plan: Plan, results: list[tuple[Tensor, Tensor]], inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of all queries, from those of the parts."""
    if len(results) == 1:
        return results[0]
    query = inputs.query
    output = query.new_empty((*query.shape[:-1], inputs.value.shape[-1]))
    lse = query.new_empty(query.shape[:-1], dtype=lse_dtype(query.dtype))
    for (part, _), (own, own_lse) in zip(plan.parts, results):
        cut(output, part.queries, plan.shard).copy_(own)
        cut(lse, part.queries, plan.shard).copy_(own_lse)
    return output, lse


def _whole_query(plan: Plan, gradients: list[Tensor], inputs: Inputs) -> Tensor:
    """The gradient of all queries, from those of the parts, the last of them first."""
    if len(gradients) == 1:
        return gradients[0]
    found = torch.empty_like(inputs.query, memory_format=torch.contiguous_format)
    for (part, _), own in zip(reversed(plan.parts), gradients):
        cut(found, part.queries, plan.shard).copy_(own)
    return found


def _own_gradients(exchange: Exchange, found: list[tuple[Part, Pair]], held: Pair) -> Pair:
    """The gradients of our keys and values from our own queries: those inside first, then those at borders."""
    shard, ordered = exchange.halo.shards[exchange.rank], found[::-1]
    first = ordered[0] if ordered else None
    if first is not None and common(shard, first[0].keys) == shard:
        part, gradients = first
        total = Pair(*(cut(t, shard, part.keys).contiguous() for t in gradients))
        around = [source for source in exchange.own(total) if source.placed != shard]
        scattered(gradients, part.keys, around)
        ordered = ordered[1:]
    else:
        total = Pair(*(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in held))
    for part, gradients in ordered:
        scattered(gradients, part.keys, exchange.own(total))
    return total
