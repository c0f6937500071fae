"""Whole models with their attention computed by one system or another: images per second, checked, in turns.

Results are appended to a file of JSON lines, one object each:
    {"kind": "vicinal bench models", date (UTC), command, machine, versions, effort}: once per run;
    {"kind": "model", model, dtype, batch, pass ("inference" or "training": forward and backward under autocast),
        systems: {name: {status, reason, error, images_per_second, seconds: see `vicinal.bench.measure.Timing`,
        peak_bytes on CUDA}}}.
`status` is "ok", "failed" (an error) or "wrong" (outputs are off, not timed). The system "none" returns values as they
are: what is left of the model's time without attention; it is not checked. A rerun skips what is in its file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import vicinal.nn
from vicinal.bench.masks import flex_block_mask
from vicinal.bench.measure import Effort, Timing, time_calls
from vicinal.functional import neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.machine import machine, versions
from vicinal.models import FFHQ_256, FFHQ_1024, Generator
from vicinal.models.register import PUBLISHED
from vicinal.problem import Inputs, Problem, dtype_name
from vicinal.reference import bias_of, neighborhood_mask

KIND = "vicinal bench models"
GENERATORS = {"stylenat_ffhq_256": FFHQ_256, "stylenat_ffhq_1024": FFHQ_1024}
FUSED, NONE = "fused", "none"
TOLERANCE = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of outputs' root mean square
CHECKED = 2  # images

Attend = Callable[..., Tensor]  # of query, key, value and neighborhoods; scale and rpb by name


@dataclass(frozen=True)
class Setting:
    """One row: a model, and how it runs."""

    model: str
    dtype: torch.dtype
    batch: int
    training: bool

    def key(self) -> dict[str, Any]:
        """What tells it from others in a file."""
        passed = "training" if self.training else "inference"
        return {"model": self.model, "dtype": dtype_name(self.dtype), "batch": self.batch, "pass": passed}


def systems(device: torch.device) -> dict[str, Callable[[], Attend]]:
    """What may compute attention on a device, each made anew for every row."""
    variants = ("naive", "gemm") if device.type == "cuda" else ("torch",)
    unfused = {v: partial(partial, vicinal.nn.unfused_attention, variant=v) for v in variants}
    found: dict[str, Callable[[], Attend]] = {FUSED: lambda: neighborhood_attention, **unfused}
    compiled = {"FlexAttention": Flex} if device.type == "cuda" else {}
    return found | {"SDPA with a mask": MaskedSDPA} | compiled | {NONE: lambda: _none}


class MaskedSDPA:
    """Torch's attention under a dense mask that holds the bias; without gradients it is made once per layer."""

    def __init__(self) -> None:
        self.masks: dict[tuple[Any, ...], tuple[Any, Tensor]] = {}

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        neighborhoods: Sequence[Neighborhood],
        *,
        scale: float,
        rpb: Any,
    ) -> Tensor:
        """As `vicinal.neighborhood_attention`."""
        lengths = tuple(query.shape[1:-2])
        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (query, key, value))
        known = (id(rpb), tuple(neighborhoods), lengths, query.dtype)
        if torch.is_grad_enabled() or known not in self.masks:
            self.masks[known] = rpb, self._mask(neighborhoods, lengths, rpb).to(q.dtype)
        output = scaled_dot_product_attention(q, k, v, attn_mask=self.masks[known][1], scale=scale)
        return output.transpose(1, 2).unflatten(1, lengths)

    def _mask(self, neighborhoods: Sequence[Neighborhood], lengths: tuple[int, ...], rpb: Tensor) -> Tensor:
        each = len(rpb) // len(neighborhoods)
        parts = []
        for table, neighborhood in zip(rpb.split(each), neighborhoods):
            resolved = neighborhood.resolve(lengths)
            allowed = neighborhood_mask(resolved, lengths).to(rpb.device)
            parts.append(bias_of(table, resolved, lengths).masked_fill(~allowed, float("-inf")))
        return torch.cat(parts)[None]


class Flex:
    """FlexAttention with the bias as `score_mod`, compiled where there is CUDA; a launch per neighborhood."""

    def __init__(self) -> None:
        from torch.nn.attention.flex_attention import flex_attention

        self.flex: Any = flex_attention
        self.masks: dict[Problem, Any] = {}
        if torch.cuda.is_available():
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = 256  # layers differ in window, dilation and size
            self.flex = torch.compile(flex_attention, dynamic=False)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        neighborhoods: Sequence[Neighborhood],
        *,
        scale: float,
        rpb: Any,
    ) -> Tensor:
        """As `vicinal.neighborhood_attention`."""
        each = query.shape[-2] // len(neighborhoods)
        parts = [t.split(each, -2) for t in (query, key, value)]
        heads = zip(*parts, neighborhoods, rpb.split(each))
        return torch.cat([self._one(q, k, v, scale, n, table) for q, k, v, n, table in heads], -2)

    def _one(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, neighborhood: Neighborhood, rpb: Tensor
    ) -> Tensor:
        problem = Problem.of(Inputs(query, key, value), (neighborhood.resolve(query.shape[1:-2]),), scale)
        if problem not in self.masks:
            self.masks[problem] = flex_block_mask(problem)
        width, (down, along) = problem.lengths[1], problem.neighborhood.axes

        def biased(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            at = [
                (k_at // axis.dilation - q_at // axis.dilation + (axis.window or 0) - 1).clamp(
                    0, 2 * (axis.window or 0) - 2
                )
                for axis, q_at, k_at in ((down, q // width, k // width), (along, q % width, k % width))
            ]
            return score + rpb[h, at[0], at[1]]

        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (query, key, value))
        output = self.flex(q, k, v, score_mod=biased, block_mask=self.masks[problem], scale=scale)
        return output.transpose(1, 2).unflatten(1, problem.lengths)


def _none(query: Tensor, key: Tensor, value: Tensor, neighborhoods: object, **_: object) -> Tensor:
    return value.contiguous()


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Modules' attention computed by `attend`."""
    module: Any = vicinal.nn
    own = module.neighborhood_attention
    module.neighborhood_attention = attend
    try:
        yield
    finally:
        module.neighborhood_attention = own


def run(
    settings: Sequence[Setting],
    device: torch.device,
    results: Path,
    effort: Effort,
    command: str,
    only: Sequence[str] = (),
    console: Console | None = None,
) -> bool:
    """Measure the rows that the file has not, with a progress bar and a line for each; whether all were right.

    Raises:
        ValueError: there is no such system.
    """
    every = systems(device)
    unknown = set(only) - set(every)
    if unknown:
        raise ValueError(f"system must be one of {', '.join(every)}, got {', '.join(sorted(unknown))}")
    chosen = {name: make for name, make in every.items() if not only or name in only}
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = [{key: line[key] for key in settings[0].key()} for line in lines if line["kind"] == "model"]
    header: dict[str, Any] = {
        "kind": KIND,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
    header |= {"machine": machine(device), "versions": versions(), "effort": asdict(effort)}
    _append(results, header)
    right = True
    with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as progress:
        for setting in progress.track(settings, description="models"):
            if setting.key() in done:
                continue
            found = measure(setting, chosen, device, effort)
            _append(results, {"kind": "model", **setting.key(), "systems": found})
            right &= all(result["status"] != "wrong" for result in found.values())
            if console is not None:
                console.print(_in_words(setting, found), soft_wrap=True)
    return right


def known() -> list[str]:
    """The names of models."""
    return [*sorted({tag.partition(".")[0] for tag, _ in PUBLISHED.values()}), *GENERATORS]


def _in_words(setting: Setting, found: dict[str, dict[str, Any]]) -> str:
    rates = [
        f"{name} {result['images_per_second']:.4g}" if result["status"] == "ok" else f"{name} {result['status']}"
        for name, result in found.items()
    ]
    return f"{' '.join(map(str, setting.key().values()))}: {', '.join(rates)} images/s"


def measure(
    setting: Setting, chosen: dict[str, Callable[[], Attend]], device: torch.device, effort: Effort
) -> dict[str, dict[str, Any]]:
    """One row: each system's result."""
    torch.manual_seed(0)
    model, inputs = _make(setting, device)
    truth = _output(
        model.float().eval(), inputs[:CHECKED].float(), partial(vicinal.nn.unfused_attention, variant="torch")
    )
    model = model.to(torch.float32 if setting.training else setting.dtype).train(setting.training)
    found: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name, make in chosen.items():
        try:
            attend = make()
            output = _output(model.eval(), inputs[:CHECKED], attend, setting)
            error = float((output.float() - truth).square().mean().sqrt() / truth.square().mean().sqrt())
            if name != NONE and not error <= TOLERANCE[setting.dtype]:
                found[name] = {"status": "wrong", "error": error, "reason": f"outputs are off by {error:.2g}"}
                continue
            model.train(setting.training)
            call = partial(_step if setting.training else _output, model, inputs, attend, setting)
            found[name] = {"status": "ok", "error": error, "peak_bytes": _peak(call, device)}
            calls[name] = call
        except Exception as error:  # whatever one system cannot do is no reason to leave out the others
            found[name] = {"status": "failed", "reason": f"{type(error).__name__}: {str(error)[:300]}"}
    for name, timing in time_calls(calls, device, effort).items():
        found[name] |= _rate(timing, setting.batch)
    return found


def _make(setting: Setting, device: torch.device) -> tuple[Any, Tensor]:
    if setting.model in GENERATORS:
        config = GENERATORS[setting.model]
        noise = torch.randn(setting.batch, config.style_dim, device=device, dtype=torch.float32)
        model: Any = Generator(config).to(device)
    else:
        from timm import create_model  # after vicinal.models, see its torchvision

        model = create_model(setting.model).to(device)
        shape = (setting.batch, *model.pretrained_cfg["input_size"])
        noise = torch.randn(shape, device=device, dtype=torch.float32)
    return model, noise if setting.training else noise.to(setting.dtype)


def _output(model: Any, inputs: Tensor, attend: Attend, setting: Setting | None = None) -> Tensor:
    half = setting is not None and setting.training and setting.dtype != torch.float32
    dtype = setting.dtype if half and setting is not None else torch.bfloat16
    with torch.no_grad(), torch.autocast(inputs.device.type, dtype, enabled=half), attending(attend):
        return model(inputs)


def _step(model: Any, inputs: Tensor, attend: Attend, setting: Setting) -> None:
    """Forward and backward pass; gradients are made anew."""
    for p in model.parameters():
        p.grad = None
    half = setting.dtype != torch.float32
    with attending(attend):
        with torch.autocast(inputs.device.type, setting.dtype if half else torch.bfloat16, enabled=half):
            loss = model(inputs).float().square().mean()
        loss.backward()


def _peak(call: Callable[[], object], device: torch.device) -> int | None:
    if device.type != "cuda":
        call()
        return None
    call()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device)


def _rate(timing: Timing, batch: int) -> dict[str, Any]:
    return {"images_per_second": batch / timing.median, "seconds": asdict(timing)}


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
