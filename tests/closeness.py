"""How close a backend must be to the oracle: about as close as torch's own attention on the same masked problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vicinal.backends.protocol import Backend, Config
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.problem import Inputs, Problem, Upstream, Wanted
from vicinal.reference import bias_of, masks_of, reference

Run = Callable[[Inputs], tuple[Tensor, Tensor]]
FACTOR = 3.0  # of torch's error
FLOOR = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-14}  # its best luck


def torch_attention(inputs: Inputs, neighborhoods: Sequence[Neighborhood], scale: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp by torch's attention under a dense mask, in the inputs' dtype. Differentiable."""
    query, key, value, extra_keys, extra_values, rpb, key_mask, window_sizes = inputs
    batch, *lengths, heads, _ = query.shape
    repeat = heads // key.shape[-2]
    q = query.flatten(1, -3).transpose(1, 2)
    k = key.flatten(1, -3).transpose(1, 2).repeat_interleave(repeat, 1)
    v = value.flatten(1, -3).transpose(1, 2).repeat_interleave(repeat, 1)
    per_head = list(neighborhoods) * (heads // len(neighborhoods))
    mask = masks_of(per_head, lengths, window_sizes).to(query.device)
    bias = torch.zeros(mask.shape[-3:], dtype=query.dtype, device=query.device)
    if rpb is not None:
        bias = torch.stack([bias_of(rpb[h : h + 1], n, lengths)[0] for h, n in enumerate(per_head)])
    bias = bias.masked_fill(~mask, float("-inf")).expand(batch, -1, -1, -1)
    if key_mask is not None:
        bias = bias.masked_fill(~key_mask.flatten(1)[:, None, None], float("-inf"))
    if extra_keys is not None and extra_values is not None:
        k = torch.cat([extra_keys.transpose(1, 2).repeat_interleave(repeat, 1), k], 2)
        v = torch.cat([extra_values.transpose(1, 2).repeat_interleave(repeat, 1), v], 2)
        bias = torch.nn.functional.pad(bias, (extra_keys.shape[1], 0))
    nothing = (bias == float("-inf")).all(-1, keepdim=True)
    if key_mask is not None:
        bias = bias.masked_fill(nothing, 0.0)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    lse = (scale * (q.float() @ k.float().transpose(-1, -2)) + bias.float()).logsumexp(-1)
    shape = query.shape[:-1]
    if key_mask is not None:  # it makes NaN of queries that have no keys
        out, lse = out.masked_fill(nothing, 0.0), lse.masked_fill(nothing[..., 0], float("-inf"))
    return out.transpose(1, 2).reshape(*shape, value.shape[-1]), lse.transpose(1, 2).reshape(shape)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of attention without neighborhoods, written out in float64. Differentiable."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (t.double().transpose(1, 2) for t in (query, key, value))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    scores = scale * q @ k.transpose(-1, -2)
    if is_causal:
        i, j = (torch.arange(n, device=scores.device) for n in scores.shape[-2:])
        scores = scores.masked_fill(j > i[:, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1).transpose(1, 2)


def gradients(run: Run, inputs: Inputs, grad_output: Tensor, grad_lse: Tensor | None) -> list[Tensor]:
    """Output, log-sum-exp and the gradients of all inputs, by autograd through `run`."""
    leaves = Inputs(*(None if t is None else t.detach().requires_grad_() for t in inputs.numbers), *inputs[6:])
    out, lse = run(leaves)
    outs, grads = [out], [grad_output.to(out.dtype)]
    if grad_lse is not None:
        outs, grads = [out, lse], [*grads, grad_lse.to(lse.dtype)]
    found = torch.autograd.grad(outs, [t for t in leaves.numbers if t is not None], grads)
    return [out.detach(), lse.detach(), *found]


def gradients_of(
    backend: Backend,
    problem: Problem,
    config: Config,
    inputs: Inputs,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor | None = None,
) -> Inputs:
    """A backend's gradients of all inputs."""
    return backend.backward(problem, config, inputs, Upstream(output, lse, grad_output, grad_lse), Wanted.of(inputs))


def random_gradients(output: Tensor, lse: Tensor, seed: int, with_lse: bool = True) -> tuple[Tensor, Tensor | None]:
    """What may come from above: gradients of an output and of its log-sum-exp."""
    generator = torch.Generator().manual_seed(seed)
    grad, grad_lse = (
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype) for t in (output, lse)
    )
    return grad, grad_lse if with_lse else None


def error(result: Tensor, truth: Tensor) -> float:
    """The largest difference, in units of the largest true value (or 1: inputs are about 1)."""
    assert result.shape == truth.shape
    if truth.numel() == 0:
        return 0.0
    difference = (result.double() - truth.double()).abs().max() / truth.abs().max().clamp(min=1.0)
    return float(difference) if not difference.isnan() else float("inf")


def in_double(inputs: Inputs) -> Inputs:
    """The inputs in float64."""
    return Inputs(*(None if t is None else t.double() for t in inputs.numbers), *inputs[6:])


def _plain(tensor: Tensor | None) -> Tensor | None:
    """A copy in memory of its own, in order and aligned: torch's attention on GPUs faults on some others."""
    return None if tensor is None else tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)


def assert_as_close_as_torch(
    results: Sequence[Tensor],
    inputs: Inputs,
    neighborhoods: Sequence[Neighborhood],
    scale: float,
    grad_output: Tensor | None = None,
    grad_lse: Tensor | None = None,
) -> None:
    """`results`: output and log-sum-exp; if `grad_output` is given, the gradients of all inputs that are not None."""
    dtype = inputs.query.dtype
    double = in_double(inputs)
    plain = Inputs(*map(_plain, inputs))
    if grad_output is None:
        truth: Sequence[Tensor] = reference(double, neighborhoods, scale)
        torchs: Sequence[Tensor] = torch_attention(plain, neighborhoods, scale)
    else:
        above = _plain(grad_output), _plain(grad_lse)
        truth = gradients(lambda i: reference(i, neighborhoods, scale), double, grad_output, grad_lse)
        torchs = gradients(lambda i: torch_attention(i, neighborhoods, scale), plain, *above)
    given = [name for name, t in zip(Inputs._fields, inputs.numbers) if t is not None]
    names = ["output", "log-sum-exp", *(f"gradient of {n}" for n in given)][: len(truth)]
    assert len(results) == len(truth)
    for name, ours, theirs, true in zip(names, results, torchs, truth, strict=True):
        floor = FLOOR[torch.float32 if name == "log-sum-exp" else dtype]
        allowed = FACTOR * error(theirs, true) + floor
        assert error(ours, true) <= allowed, f"{name}: error {error(ours, true):.2e}, allowed {allowed:.2e}"


def assert_at_most_a_fifth_above_torch(
    results: Sequence[Tensor], inputs: Inputs, neighborhoods: Sequence[Neighborhood], scale: float, grad_output: Tensor
) -> None:
    """`results`: output, log-sum-exp and the gradients of all inputs that are not None; by root mean squares."""
    double = in_double(inputs)
    truth = gradients(lambda i: reference(i, neighborhoods, scale), double, grad_output, None)
    theirs = gradients(lambda i: torch_attention(i, neighborhoods, scale), inputs, grad_output, None)
    names = ["output", "log-sum-exp", "query", "key", "value", "additional keys", "additional values"]
    for name, a, b, true in zip(names, results, theirs, truth):
        # A tiny floor: both may be within the rounding of the result itself.
        floor = 0.3 * torch.finfo(a.dtype).eps * _rms(true)
        assert _rms(a - true) <= 1.2 * _rms(b - true) + floor, name


def _rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()
