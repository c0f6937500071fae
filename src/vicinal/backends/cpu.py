"""The CPU backend: torch operations only, no compiler. Runs every problem whose tensors are on a CPU.

Query tiles attend to their boxes of keys by torch's fused attention for CPUs, many tiles a call, with an additive
mask only where needed (`cpu_strips`, `cpu_slabs`); tilings are chosen by counting (`cpu_cost`). Half precision is
computed in float32. Every result is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from vicinal.backends import cpu_slabs, cpu_strips
from vicinal.backends.cpu_cost import Choice, Shape, choices, choose
from vicinal.backends.cpu_plan import StripPlan, strip_plan
from vicinal.backends.cpu_strips import Results, Tokens, attention, attention_backward
from vicinal.backends.protocol import Direction
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted, lse_dtype
from vicinal.tuning.config import TileConfig

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LISTED = 8  # configs


@dataclass(frozen=True)
class HeadSet:
    """Query heads that share a neighborhood, with the key head of each."""

    neighborhood: Neighborhood
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """How a set of heads is run.

    Attributes:
        apart: whether pieces run on threads of their own; else torch's threads share every operation.
        plain: whether one call of torch's attention on the inputs as they are does it all.
    """

    heads: HeadSet
    plan: StripPlan
    slabs: bool
    apart: bool
    plain: bool

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp, of the width of the tokens."""
        return (cpu_slabs.forward if self.slabs else cpu_strips.forward)(self.plan, tokens, self.apart)

    def backward(self, tokens: Tokens, results: Results) -> Tokens:
        """Gradients of the tokens."""
        return (cpu_slabs.backward if self.slabs else cpu_strips.backward)(self.plan, tokens, results, self.apart)


class CpuBackend:
    """See `vicinal.backends.protocol.Backend`."""

    name = "cpu"

    def unsupported(self, problem: Problem) -> str | None:
        """A reason in words, or None."""
        return unsupported_tensors(problem)

    def seconds(self, problem: Problem, direction: Direction, config: TileConfig) -> None:
        return None

    def configs(self, problem: Problem, direction: Direction) -> Sequence[TileConfig]:
        """The tilings by estimated time; where heads differ, one that leaves each set of heads its own best."""
        width = max(problem.head_dim, problem.value_dim)
        first = choices(_shape(problem, head_sets(problem)[0], width), direction)
        listed = [_config(c) for c in first[: 1 if len(head_sets(problem)) > 1 else LISTED]]
        return list(dict.fromkeys(listed))

    def forward(self, problem: Problem, config: TileConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        with torch.no_grad():
            return _forward(problem, config, inputs)

    def backward(
        self,
        problem: Problem,
        config: TileConfig,
        inputs: Inputs,
        upstream: Upstream,
        wanted: Wanted,
    ) -> Inputs:
        """Gradients of all inputs."""
        with torch.no_grad():
            grads = _backward(problem, config, inputs, *upstream)
            return Inputs(*(grad if needed else None for grad, needed in zip(grads, wanted)))  # type: ignore[arg-type]


def unsupported_tensors(problem: Problem) -> str | None:
    """Why no backend for CPUs can run `problem`; None when its tensors are such as they take."""
    if problem.device.type != "cpu":
        return f"the tensors are on {problem.device}, not on a CPU"
    if problem.dtype not in DTYPES:
        return f"{problem.dtype} is not one of {', '.join(map(str, DTYPES))}"
    return None


@lru_cache(maxsize=1024)
def head_sets(problem: Problem) -> tuple[HeadSet, ...]:
    """The heads by their neighborhoods."""
    every = tuple(range(problem.heads))
    kv = tuple(h // problem.group_size for h in every)
    if len(set(problem.neighborhoods)) == 1:
        return (HeadSet(problem.neighborhoods[0], every, kv),)
    sets = []
    for neighborhood in dict.fromkeys(problem.neighborhoods):
        heads = tuple(h for h in every if problem.neighborhoods[h] == neighborhood)
        sets.append(HeadSet(neighborhood, heads, tuple(kv[h] for h in heads)))
    return tuple(sets)


def _forward(problem: Problem, config: TileConfig, inputs: Inputs) -> tuple[Tensor, Tensor]:
    width = max(problem.head_dim, problem.value_dim)
    programs = _programs(problem, config, width, "forward")
    if programs[0].plain:  # small problems: what is not done here counts
        return cpu_slabs.forward_single(programs[0].plan, *inputs[:3], problem.scale)
    wide = _widen(inputs, width)
    if problem.batch == 0:
        output = wide.query.new_empty(wide.query.shape)
        lse = output.new_empty(output.shape[:-1])
    elif len(programs) == 1:
        output, lse = programs[0].forward(_tokens(wide, problem))
    else:
        output, lse = torch.empty_like(wide.query), wide.query.new_empty(wide.query.shape[:-1])
        for program in programs:
            heads = torch.tensor(program.heads.heads)
            out, sums = program.forward(_tokens(_pick(wide, program.heads), problem))
            output.index_copy_(-2, heads, out)
            lse.index_copy_(-1, heads, sums)
    if wide.additional_keys is not None and problem.batch:
        output, lse = _with_additional(problem, wide, output, lse)
    if width != problem.value_dim:
        output = output[..., : problem.value_dim]
    return output.to(problem.dtype).contiguous(), lse


def _with_additional(problem: Problem, wide: Inputs, output: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the attention to the window with that to the additional keys, by their log-sum-exps."""
    key, value = _repeated(wide, problem.group_size)
    out, sums = attention(_flat(wide.query), key, value, 0.0, False, scale=problem.scale)
    out, sums = out.transpose(1, 2).reshape(output.shape), sums.transpose(1, 2).reshape(lse.shape)
    total = torch.logaddexp(lse, sums)
    output = output * (lse - total).exp_().unsqueeze(-1)
    return output.addcmul_(out, (sums - total).exp_().unsqueeze(-1)), total


def _backward(
    problem: Problem,
    config: TileConfig,
    inputs: Inputs,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor | None,
) -> Inputs:
    if problem.batch == 0:
        return Inputs(*(None if t is None else t.new_zeros(t.shape) for t in inputs))  # type: ignore[arg-type]
    width = max(problem.head_dim, problem.value_dim) + (grad_lse is not None)
    programs = _programs(problem, config, width, "backward")
    if programs[0].plain and grad_lse is None:
        query, key, value = (t.contiguous() for t in (inputs.query, inputs.key, inputs.value))
        tokens = Tokens(query, key, value, None, problem.scale)
        results = Results(output.contiguous(), lse.contiguous(), grad_output.contiguous())
        plain = cpu_slabs.backward_single(programs[0].plan, tokens, results)
        return Inputs(plain.query, plain.key, plain.value)
    wide = _widen(inputs, width)
    output, above = _wide(output, width), _wide(grad_output, width)
    if grad_lse is not None:
        # The kernel computes delta = rowsum(dO * O); a channel of its own makes it rowsum(dO * O) - grad_lse.
        above = above.clone() if above.data_ptr() == grad_output.data_ptr() else above
        above[..., -1] = 1
        output[..., -1] = -grad_lse.to(output.dtype)
    results = Results(output, lse.contiguous(), above)
    if len(programs) == 1:
        grads = programs[0].backward(_tokens(wide, problem), results)
    else:
        grads = Tokens(
            torch.empty_like(wide.query),
            torch.zeros_like(wide.key),
            torch.zeros_like(wide.value),
            None if wide.rpb is None else torch.empty_like(wide.rpb),
            problem.scale,
        )
        for program in programs:
            own = program.heads
            heads, kv = torch.tensor(own.heads), torch.tensor(own.kv_heads)
            part = Results(
                results.output.index_select(-2, heads),
                results.lse.index_select(-1, heads),
                results.grad_output.index_select(-2, heads),
            )
            own_grads = program.backward(_tokens(_pick(wide, own), problem), part)
            grads.query.index_copy_(-2, heads, own_grads.query)
            grads.key.index_add_(-2, kv, own_grads.key)
            grads.value.index_add_(-2, kv, own_grads.value)
            if grads.rpb is not None and own_grads.rpb is not None:
                grads.rpb.index_copy_(0, heads, own_grads.rpb)
    extra: list[Tensor | None] = [None, None]
    if wide.additional_keys is not None:
        key, value = _repeated(wide, problem.group_size)
        dq, dk, dv = attention_backward(
            _flat(above), _flat(wide.query), key, value, _flat(output), _flat(results.lse.unsqueeze(-1))[..., 0],
            0.0, False, scale=problem.scale,
        )  # fmt: skip
        grads.query.add_(dq.transpose(1, 2).reshape(wide.query.shape))
        split = (problem.kv_heads, problem.group_size)
        extra = [g.transpose(1, 2).unflatten(2, split).sum(3) for g in (dk, dv)]
    found = (grads.query, grads.key, grads.value, *extra, grads.rpb)
    return Inputs(*(_narrow(grad, like) for grad, like in zip(found, inputs)))  # type: ignore[arg-type]


def _shape(problem: Problem, own: HeadSet, width: int) -> Shape:
    whole = len(own.heads) == problem.heads
    return Shape(
        batch=problem.batch,
        lengths=problem.lengths,
        kv_heads=problem.kv_heads if whole else len(own.heads),
        group=problem.group_size if whole else 1,
        width=width,
        neighborhood=own.neighborhood,
        has_rpb=problem.has_rpb,
        itemsize=8 if problem.dtype == torch.float64 else 4,
        threads=torch.get_num_threads(),
    )


def _config(choice: Choice) -> TileConfig:
    variant = "slabs" if choice.slabs else f"strips along axis {choice.key.row_axis}"
    return TileConfig(choice.key.tile, choice.box, 1, 1, variant)


@lru_cache(maxsize=1024)
def _programs(problem: Problem, config: TileConfig, width: int, direction: Direction) -> tuple[Program, ...]:
    """What runs each set of heads; looked up once per call."""
    sets = head_sets(problem)
    found = []
    for own in sets:
        shape = _shape(problem, own, width)
        if len(sets) > 1:
            choice = choices(shape, direction)[0]
        else:
            slabs = config.variant == "slabs"
            row_axis = 0 if slabs else int(config.variant.rsplit(" ", 1)[1])
            choice = choose(shape, direction, config.query_tile, row_axis, slabs)
        plan = strip_plan(choice.key)
        plain = len(sets) == 1 and _is_plain(problem, choice, plan)
        found.append(Program(own, plan, choice.slabs, choice.apart, plain))
    return tuple(found)


def _is_plain(problem: Problem, choice: Choice, plan: StripPlan) -> bool:
    single = choice.slabs and not choice.apart and cpu_slabs.is_single(plan)
    as_they_are = problem.dtype in (torch.float32, torch.float64) and problem.head_dim == problem.value_dim
    return single and as_they_are and not problem.additional and problem.batch > 0


def _tokens(wide: Inputs, problem: Problem) -> Tokens:
    return Tokens(wide.query, wide.key, wide.value, wide.rpb, problem.scale)


def _widen(inputs: Inputs, width: int) -> Inputs:
    """Contiguous, in the dtype of the computation, query, keys and values of one width (zeros added)."""
    query, key, value, extra_key, extra_value, rpb = inputs
    return Inputs(
        _wide(query, width),
        _wide(key, width),
        _wide(value, width),
        None if extra_key is None else _wide(extra_key, width),
        None if extra_value is None else _wide(extra_value, width),
        None if rpb is None else rpb.to(lse_dtype(rpb.dtype)).contiguous(),
    )


def _wide(tensor: Tensor, width: int) -> Tensor:
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    missing = width - tensor.shape[-1]
    return pad(tensor, (0, missing)) if missing else tensor.contiguous()


def _narrow(grad: Tensor | None, like: Tensor | None) -> Tensor | None:
    """A gradient in the shape and dtype of its input."""
    if grad is None or like is None:
        return None
    return grad[tuple(slice(n) for n in like.shape)].to(like.dtype).contiguous()


def _pick(wide: Inputs, own: HeadSet) -> Inputs:
    heads, kv = torch.tensor(own.heads), torch.tensor(own.kv_heads)
    return Inputs(
        wide.query.index_select(-2, heads),
        wide.key.index_select(-2, kv),
        wide.value.index_select(-2, kv),
        rpb=None if wide.rpb is None else wide.rpb.index_select(0, heads),
    )


def _flat(tokens: Tensor) -> Tensor:
    """`[B, *X, H, width]` as `[B, H, N, width]`."""
    return tokens.flatten(1, -3).transpose(1, 2)


def _repeated(wide: Inputs, group: int) -> tuple[Tensor, Tensor]:
    """Additional keys and values for every query head, `[B, H, M, width]`."""
    assert wide.additional_keys is not None
    assert wide.additional_values is not None
    key, value = wide.additional_keys, wide.additional_values
    return key.repeat_interleave(group, 2).transpose(1, 2), value.repeat_interleave(group, 2).transpose(1, 2)


BACKEND = CpuBackend()
