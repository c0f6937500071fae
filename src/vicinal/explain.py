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
from vicinal.distributed.halo import halo, shards_of, volume
from vicinal.machine import device_name
from vicinal.problem import Problem
from vicinal.tuning import cache
from vicinal.words import by, labelled, wrapped

TILINGS_SHOWN = 3  # of the chosen backend


def print_explanation(problem: Problem, parts: tuple[int, ...] | None = None) -> None:
    """Why `problem` runs on which backend with which tiling: verdicts, waste, FLOPs, bytes, intensity.

    `parts`: of a map that ranks hold together, parts along each axis; then also what they send each other.
    """
    print(explanation(problem, shutil.get_terminal_size().columns, parts))


def explanation(problem: Problem, width: int, parts: tuple[int, ...] | None = None) -> str:
    """What `print_explanation` prints, in lines of `width` columns."""
    dense = problem.batch * problem.heads * prod(problem.lengths) * prod(problem.key_lengths)
    fewer = f"{dense / problem.useful_scores:.3g}x fewer than self attention"
    lines = wrapped(problem.in_words(), width)
    lines += [*wrapped(f"{problem.useful_scores:,} useful scores, {fewer}", width), ""]
    for passed in get_args(Direction):
        flops, moved, ratio = useful_flops(problem, passed), least_bytes(problem, passed), intensity(problem, passed)
        words = f"{flops / 1e9:.4g} GFLOP useful, at least {moved / 1e6:.4g} MB moved, {ratio:.3g} FLOP per byte"
        lines += labelled(passed, words, width)
    lines += ["", *wrapped(_known(problem), width), ""]
    verdicts = dispatch.explain(problem)
    chosen = _chosen(problem)
    for verdict in verdicts:
        lines += labelled(verdict.name, _words(verdict, chosen), width)
    tilings = [line for verdict in verdicts for line in _tilings(problem, verdict, chosen, width)]
    if tilings:
        told = "Tilings, the first is used (waste: scores of whole tiles over useful ones):"
        lines += ["", *wrapped(told, width), *tilings]
    if parts is not None:
        lines += ["", *wrapped(_sent(problem, parts), width)]
    return "\n".join(lines)


def _sent(problem: Problem, parts: tuple[int, ...]) -> str:
    """What ranks send each other of a map cut into so many parts along each axis."""
    shards = shards_of(problem.lengths, parts)
    plan = halo(tuple(n.over((None,) * n.rank) for n in problem.neighborhoods), problem.lengths, shards)
    per_token = problem.batch * problem.kv_heads * (problem.head_dim + problem.value_dim) * problem.dtype.itemsize
    rank = max(range(len(shards)), key=plan.tokens_received)
    received, peers = plan.tokens_received(rank), sum(map(bool, plan.receives(rank)))
    others = prod(problem.lengths) - volume(plan.shards[rank])
    inside = plan.inside(rank)
    share = 0 if inside is None else volume(inside) / volume(plan.shards[rank])
    fewer = f", {others / received:.3g}x fewer than all keys and values" if received else ""
    return (
        f"Split into {by(parts)} shards, a rank needs at most {received:,} tokens of {peers} others, "
        f"{received * per_token / 1e6:.4g} MB forward (and as much home backward){fewer}; {share:.0%} of its queries "
        f"need none of them."
    )


def _known(problem: Problem) -> str:
    """What the choice is made by."""
    each = {direction: cache.look_up(problem, direction) for direction in get_args(Direction)}
    words = [f"{direction} {_source(found)}" for direction, found in each.items() if found is not None]
    if words:
        return f"Measured on such a device: {', '.join(words)}."
    what = "This kind of problem" if cache.is_measured(problem.device) else f"{device_name(problem.device)}"
    return f"{what} was never measured: the choice is an estimate. To measure: vicinal tune."


def _source(found: cache.Found) -> str:
    """Where an entry is from."""
    kind = "of this class" if found.distance == 0 else f"of a class at distance {found.distance}"
    table = "the package's table" if found.shipped else "your table"
    apart = found.entry.versions.apart(cache.versions())
    return f"by {found.entry.measured}, {kind}, in {table}" + f" (of {apart})" * bool(apart)


def _chosen(problem: Problem) -> dict[Direction, str]:
    """The automatic choice for each pass; empty where no backend can run it."""
    try:
        plan = dispatch.plan(problem)
    except ValueError:
        return {}
    return {"forward": plan.backend.name, "backward": plan.gradients.name}


def _words(verdict: dispatch.Verdict, chosen: dict[Direction, str]) -> str:
    """A verdict for the table; `chosen`: the backend of each pass."""
    if verdict.reason is not None:
        return f"no: {verdict.reason}"
    runs = [direction for direction, name in chosen.items() if name == verdict.name]
    if runs:
        words = f"chosen for {' and '.join(runs)}"
    elif verdict.name not in dispatch.AUTOMATIC:
        words = "could run it; only when named"
    else:
        words = "could run it"
    estimates = [f"{1e6 * s:.3g} us {direction}" for direction, s in verdict.seconds.items() if s is not None]
    return f"{words}; estimated: {', '.join(estimates)}" if estimates else words


def _tilings(problem: Problem, verdict: dispatch.Verdict, chosen: dict[Direction, str], width: int) -> Iterator[str]:
    for direction, configs in verdict.configs.items():
        shown = TILINGS_SHOWN if verdict.name == chosen.get(direction) else 1
        for place, config in enumerate(configs[:shown], 1):
            how = dispatch.backend(verdict.name).described(problem, direction, config)
            words = f"{direction}, {place} of {len(configs)}: {how.words}, waste {how.waste:.3g}"
            yield from labelled(verdict.name, words, width)
