"""`vicinal explain`: why a problem runs on which backend with which tiling. Plain text, wrapped to the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from math import prod
from typing import get_args

from vicinal import dispatch
from vicinal.backends.protocol import Direction
from vicinal.bench.cases import useful_flops
from vicinal.bench.roofline import intensity, least_bytes
from vicinal.geometry.work import waste
from vicinal.problem import Problem
from vicinal.tuning.config import TileConfig
from vicinal.words import labelled, wrapped

TILINGS_SHOWN = 3  # of the chosen backend


def print_explanation(problem: Problem) -> None:
    """Why `problem` runs on which backend with which tiling: verdicts, waste, FLOPs, bytes, intensity."""
    print(explanation(problem, shutil.get_terminal_size().columns))


def explanation(problem: Problem, width: int) -> str:
    """What `print_explanation` prints, in lines of `width` columns."""
    dense = problem.batch * problem.heads * prod(problem.lengths) ** 2
    fewer = f"{dense / problem.useful_scores:.3g}x fewer than self attention"
    lines = wrapped(problem.in_words(), width)
    lines += [*wrapped(f"{problem.useful_scores:,} useful scores, {fewer}", width), ""]
    for passed in get_args(Direction):
        flops, moved, ratio = useful_flops(problem, passed), least_bytes(problem, passed), intensity(problem, passed)
        words = f"{flops / 1e9:.4g} GFLOP useful, at least {moved / 1e6:.4g} MB moved, {ratio:.3g} FLOP per byte"
        lines += labelled(passed, words, width)
    lines.append("")
    verdicts = dispatch.explain(problem)
    chosen = _chosen(problem)
    for verdict in verdicts:
        words = _words(verdict, [d for d, name in chosen.items() if name == verdict.name])
        lines += labelled(verdict.name, words, width)
    tilings = [line for verdict in verdicts for line in _tilings(problem, verdict, chosen, width)]
    if tilings:
        told = "Tilings, the first is used (waste: scores of whole tiles over useful ones):"
        lines += ["", *wrapped(told, width), *tilings]
    return "\n".join(lines)


def _chosen(problem: Problem) -> dict[Direction, str]:
    """The automatic choice for each pass; empty where no backend can run it."""
    try:
        plan = dispatch.plan(problem)
    except ValueError:
        return {}
    return {"forward": plan.backend.name, "backward": plan.gradients.name}


def _words(verdict: dispatch.Verdict, chosen: list[Direction]) -> str:
    """A verdict for the table; `chosen`: the passes that this backend runs."""
    if verdict.reason is not None:
        return f"no: {verdict.reason}"
    declined = [f"leaves the {d} pass to another: {why}" for d, why in verdict.declined.items() if why is not None]
    if chosen:
        return "; ".join((f"chosen for {' and '.join(chosen)}", *declined))
    if verdict.name not in dispatch.AUTOMATIC:
        return "could run it; only when named"
    return "; ".join(declined) if declined else "could run it; comes later in order of preference"


def _tilings(problem: Problem, verdict: dispatch.Verdict, chosen: dict[Direction, str], width: int) -> Iterator[str]:
    for direction, configs in verdict.configs.items():
        shown = TILINGS_SHOWN if verdict.name == chosen.get(direction) else 1
        for place, config in enumerate(configs[:shown], 1):
            words = f"{direction}, {place} of {len(configs)}: {_tiling(problem, config)}"
            yield from labelled(verdict.name, words, width)


def _tiling(problem: Problem, config: TileConfig) -> str:
    tiles, unfolded = (config.query_tile, config.key_tile), config.unfolded
    each = [waste(n, problem.lengths, *tiles, unfolded) for n in problem.neighborhoods]
    queries, keys = ("x".join(map(str, tile)) for tile in tiles)
    words = [f"{queries} queries by {keys} keys"]
    if problem.device.type == "cuda":
        words.append(f"{config.warps} warps, {config.stages} stages")
    if config.variant:
        words.append(config.variant)
    if unfolded is not None:
        words.append(f"groups of axis {unfolded} side by side")
    return ", ".join([*words, f"waste {sum(each) / len(each):.3g}"])
