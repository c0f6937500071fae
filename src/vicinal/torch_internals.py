"""What only private names of torch tell about a call, each with a safe answer for versions of torch without the name.

Safe is what is right in any case: "something watches this call" sends it through the operator, which everything sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

F = TypeVar("F", bound=Callable[..., Any])


def _private(path: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """The function of that name below `torch._C`, or the other one."""
    found: Any = torch._C
    for name in path.split("."):
        found = getattr(found, name, None)
    return otherwise if found is None else found


_modes = _private("_len_torch_dispatch_stack", lambda: 1)
_interpreters = _private("_functorch.peek_interpreter_stack", lambda: "unknown")
_trace = _private("_get_tracing_state", lambda: "unknown")
_is_legacy_batched = _private("_functorch.is_legacy_batchedtensor", lambda t: True)
_is_wrapped = _private("_functorch.is_functorch_wrapped_tensor", lambda t: False)
_is_tracking = _private("_functorch.is_gradtrackingtensor", lambda t: False)
_unwrapped = _private("_functorch.get_unwrapped", lambda t: None)


def run_when_traced(function: F) -> F:
    """Makes `function` run once, when compiled code that calls it is traced. Where torch lacks the mark, tracing stops.

    `torch.compiler.assume_constant_result` does the same, and imports the compiler for it, which takes seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def in_dispatch_mode() -> bool:
    """Whether a `TorchDispatchMode` is active."""
    return _modes() > 0


def in_transform() -> bool:
    """Whether a transform of `torch.func` is active."""
    return _interpreters() is not None


def in_trace() -> bool:
    """Whether `torch.jit.trace` is recording."""
    return _trace() is not None


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Its shape, of integers (or symbols) also where `torch.jit.trace` hands out tensors."""
    return tensor.shape if torch.compiler.is_compiling() or not in_trace() else tuple(map(int, tensor.shape))


def watched(tensors: Iterable[Tensor | None]) -> bool:
    """Whether something must see a call as an operator: a mode, a transform, tracing, a tensor subclass."""
    return in_dispatch_mode() or in_transform() or in_trace() or not _PLAIN.issuperset(map(type, tensors))


_PLAIN = {Tensor, torch.nn.Parameter, type(None)}


def watched_backward(grads: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass must run operators: it is to be differentiated, traced or batched, or is `watched`."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or watched(grads):
        return True
    return any(t is not None and is_legacy_batched(t) for t in grads)


def in_forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def is_legacy_batched(tensor: Tensor) -> bool:
    """Whether it comes from `torch.autograd.grad(..., is_grads_batched=True)`, whose vmap is not `torch.func`'s."""
    return bool(_is_legacy_batched(tensor))


def is_differentiated_by_a_transform(tensor: Tensor | None) -> bool:
    """Whether `torch.func.grad`, `vjp`, `jvp` or the like differentiates with respect to it."""
    while tensor is not None and _is_wrapped(tensor):
        if _is_tracking(tensor):
            return True
        tensor = _unwrapped(tensor)
    return False


def all_to_all(sent: Tensor, received: list[int], sizes: list[int], group: str) -> Tensor:
    """Functional and asynchronous: elements of `sent`, `sizes` to every rank; those that come, to be waited for.

    `received`: how many come from every rank. `group`: a process group's name.
    """
    return torch.ops._c10d_functional.all_to_all_single(sent, received, sizes, group)


def wait(coming: Tensor) -> Tensor:
    """What a functional collective makes, once it has come (on a GPU, for what is launched after this)."""
    return torch.ops._c10d_functional.wait_tensor(coming)
