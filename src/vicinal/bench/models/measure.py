"""One row: every system checked, then timed in turns; peak memory, and the share of attention in the model's time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from vicinal.bench.graphs import give_back, own_stream
from vicinal.bench.measure import Calls, Effort, Timing, time_calls, time_kernels, time_limit, words
from vicinal.bench.models.attends import Attend, System, attending, systems, unfused
from vicinal.bench.models.rows import GENERATORS, Row
from vicinal.models import Generator

CHECKED = 2  # images
SLACK = 3.0  # errors may be so many times those of plain torch in the same dtype,
ROUNDING = {"cpu": 1e-5, "cuda": 1e-3}  # and so much: on CUDA products of float32 may be in TF32
SHARES = 3  # calls on a CPU, of which the share of attention is taken
ATTENTION = "attention of a layer"  # in a profile

Result = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """What the first images give in double precision by plain torch, and how exact plain torch is in the row's dtype.

    Attributes:
        values: outputs, and of a row of training all gradients, by name.
        tolerances: relative root mean square errors that are right.
    """

    values: dict[str, list[Tensor]]
    tolerances: dict[str, float]

    def errors(self, found: dict[str, list[Tensor]]) -> dict[str, float]:
        """Relative root mean square errors, of all gradients together."""
        return {name: _distance(found[name], expected) for name, expected in self.values.items()}


def measure(row: Row, names: Sequence[str], device: torch.device, effort: Effort) -> dict[str, Result]:
    """Each system's result, as `vicinal.bench.models.run` has it."""
    try:
        with own_stream(device):
            return _measure(row, names, device, effort)
    finally:
        give_back(device)


def _measure(row: Row, names: Sequence[str], device: torch.device, effort: Effort) -> dict[str, Result]:
    torch.manual_seed(0)
    model, images = make(row, device)
    truth = _truth(row, model, images)
    model = model if row.training else model.to(row.dtype)
    images = images if row.training else images.to(row.dtype)
    found: dict[str, Result] = {}
    calls: dict[str, Callable[[], object]] = {}
    every = systems(device)
    for name in names:
        try:
            with time_limit(effort.prepare_seconds):
                found[name], call = _prepare(row, every[name], model, images, truth, device)
            if call is not None:
                calls[name] = call
        except Exception as error:  # whatever one system cannot do is no reason to leave out the others
            found[name] = {"status": "failed", "reason": words(error)}
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for name, timing in _times(calls, device, effort).items():
        if isinstance(timing, str):
            found[name] |= {"status": "failed", "reason": timing}
        else:
            found[name] |= {"images_per_second": row.batch / timing.median, "seconds": asdict(timing)}
    if device.type == "cuda":
        for name, replays in time_kernels(calls, device, effort).items():
            found[name] |= {"not_captured": replays} if isinstance(replays, str) else {"replays": asdict(replays)}
    return found


def _times(calls: Calls, device: torch.device, effort: Effort) -> dict[str, Timing | str]:
    """Seconds per call in turns; where memory is too short for that, of each alone, or why there are none."""
    with suppress(torch.OutOfMemoryError):
        return dict(time_calls(calls, device, effort))
    alone: dict[str, Timing | str] = {}
    for name, call in calls.items():
        torch.cuda.empty_cache()
        try:
            alone |= time_calls({name: call}, device, effort)
        except torch.OutOfMemoryError as error:
            alone[name] = words(error)
    return alone


def make(row: Row, device: torch.device) -> tuple[Any, Tensor]:
    """A row's model with random weights, by which attention and its bias count, and images (or noise), in float32."""
    with device:
        if row.model in GENERATORS:
            config = GENERATORS[row.model]
            model: Any = Generator(config)
            shape: tuple[int, ...] = (row.batch, config.style_dim)
        else:
            from timm import create_model  # after vicinal.models, see its torchvision

            model = create_model(row.model)
            _, *sides = model.pretrained_cfg["input_size"]
            shape = (row.batch, 3, *(sides if row.side is None else [row.side] * 2))
        images = torch.randn(shape, dtype=torch.float32, device=device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "rpb" in name:  # as they are made, errors in them are less than half precision's,
                p.normal_()
            elif name.endswith(("gamma1", "gamma2")):  # and so does a branch that is added with a factor of 1e-5
                p.fill_(1.0)
    return model.to(device).eval(), images


def _truth(row: Row, model: Any, images: Tensor) -> Truth:
    plain, few = unfused("torch"), images[:CHECKED]
    double = Row(row.model, torch.float64, row.batch, row.training, row.side)
    values = _values(double, deepcopy(model).double(), few.double(), plain)
    own = _values(row, model if row.training else deepcopy(model).to(row.dtype), few, plain)
    floor = ROUNDING[images.device.type]
    return Truth(values, {name: SLACK * _distance(own[name], exact) + floor for name, exact in values.items()})


def _values(row: Row, model: Any, few: Tensor, attend: Attend) -> dict[str, list[Tensor]]:
    """Outputs for a few images, and gradients where a row wants them; nothing is dropped."""
    model.eval()
    with attending(attend), torch.set_grad_enabled(row.training):
        output = _run(row, model, few if row.training else few.to(row.dtype))
        found = {"outputs": [output.detach()[:CHECKED]]}
        if row.training:
            parameters = list(model.parameters())
            grads = torch.autograd.grad(output.float().square().sum(), parameters, allow_unused=True)
            found["gradients"] = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads)]
    return found


def _prepare(
    row: Row, system: System, model: Any, images: Tensor, truth: Truth, device: torch.device
) -> tuple[Result, Callable[[], object] | None]:
    """What is known of a system before it is timed, and what to time, unless it is wrong."""
    for p in model.parameters():
        p.grad = None
    free = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if system.channels_last:
        model = deepcopy(model).to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    attend = system.make()
    run = torch.compile(model, dynamic=False) if system.compiled else model
    result: Result = {"status": "ok"}
    if system.checked:
        whole = system.compiled and not row.training  # what is compiled for a few images is not what is timed
        errors = truth.errors(_values(row, run, images if whole else images[:CHECKED], attend))
        result |= {"errors": errors, "tolerances": truth.tolerances}
        wrong = [f"{name} are off by {e:.2g}" for name, e in errors.items() if not e <= truth.tolerances[name]]
        if wrong:
            return result | {"status": "wrong", "reason": ", ".join(wrong)}, None
    call = _call(row, run, images, attend)
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        own = sum(t.nbytes for t in [*model.parameters(), images]) * (not system.channels_last)
        result["peak_bytes"] = torch.cuda.max_memory_allocated(device) - free + own
    told = not row.training and not system.compiled  # calls of attention can be told from the rest
    if device.type == "cuda":
        try:
            result |= _kernels(_call(row, run, images, _annotated(attend)) if told else call, device)
        except Exception as error:  # whatever a profiler cannot do is no reason not to time
            result["not_profiled"] = words(error)
    elif told:
        result["attention_share"] = _share_on_cpu(row, run, images, attend)
    return result, call


def _call(row: Row, model: Any, images: Tensor, attend: Attend) -> Callable[[], object]:
    """What is timed."""
    model.train(row.training)
    if not row.training:

        def infer() -> None:
            with attending(attend), torch.no_grad():
                _run(row, model, images)

        return infer
    # A rate of 0: all the work of a step, and the same weights for the next system.
    on_cuda = images.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True, capturable=on_cuda)
    scaler = torch.amp.GradScaler(images.device.type, enabled=row.dtype == torch.float16)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        with attending(attend):
            loss = _run(row, model, images).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _run(row: Row, model: Any, images: Tensor) -> Tensor:
    half = row.training and row.dtype in (torch.float16, torch.bfloat16)
    with torch.autocast(images.device.type, row.dtype) if half else nullcontext():
        return model(images)


def _kernels(call: Callable[[], object], device: torch.device) -> Result:
    """`kernel_seconds` of a call on CUDA, and `attention_share`, of kernels' time, if attention is annotated."""
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize(device)
    events = [event for event in profiler.events() or () if event.device_type.name == "CUDA"]
    spans = [event.time_range for event in events if event.name == ATTENTION]
    kernels = [event.time_range for event in events if not event.is_user_annotation]
    busy = sum(kernel.elapsed_us() for kernel in kernels)
    if not busy:  # no profiler of kernels is at hand
        return {}
    found: Result = {"kernel_seconds": 1e-6 * busy}
    if spans:
        inside = [k for k in kernels if any(span.start <= k.start < span.end for span in spans)]
        found["attention_share"] = sum(kernel.elapsed_us() for kernel in inside) / busy
    return found


def _annotated(attend: Attend) -> Attend:
    """`attend` whose calls a profiler can tell."""

    def annotated(*args: Any, **kwargs: Any) -> Tensor:
        with record_function(ATTENTION):
            return attend(*args, **kwargs)

    return annotated


def _share_on_cpu(row: Row, model: Any, images: Tensor, attend: Attend) -> float:
    """How much of forward passes attention takes, by the clock: profiled operators take longer."""
    inside = 0.0

    def timed(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal inside
        start = time.perf_counter()
        output = attend(*args, **kwargs)
        inside += time.perf_counter() - start
        return output

    call = _call(row, model, images, timed)
    start = time.perf_counter()
    for _ in range(SHARES):
        call()
    return inside / (time.perf_counter() - start)


def _distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    off = sum(float((a.double() - b).square().sum()) for a, b in zip(found, expected))
    return (off / sum(float(b.square().sum()) for b in expected)) ** 0.5
