"""One of three processes that `test_ranks.py` starts: they tune together, each with its own folder of tables."""

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from vicinal import Neighborhood, dispatch, na2d, tune
from vicinal.backends.protocol import settings
from vicinal.bench.cases import Case
from vicinal.bench.measure import Timing
from vicinal.tuning import cache, search

meeting, place, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
timed = []


def clock(calls, device, effort):
    """Later candidates are faster, by a clock that every rank has its own of."""
    if effort is search.ROUGH:
        timed.append(sorted(calls))
    return {i: Timing(1.0 / (i + 1 + rank / 10), 0.0, 0.0, 3, 1) for i in calls}


def problem_of(*lengths):
    return Case("", lengths, Neighborhood.of(2, 3).resolve(lengths), 2, 8).problem("cpu")


def plans(*problems):
    return [settings(dispatch.plan(p).forward) for p in problems]


search.time_cold = clock
dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=3, timeout=timedelta(seconds=60))
both = problem_of(9, 12), problem_of(9, 80)
report = {}
with tune() as found:  # the ranks meet different problems, and none meets both
    if rank < 2:
        na2d(*torch.ones(3, 1, *both[rank].lengths, 2, 8), 3)
report["found"] = [[e.measured, [t.config for t in e.timings]] for e in found]
report["timed"] = list(timed)
report["plans"] = plans(*both)
report["file"] = cache.path_of(cache.device_name(torch.device("cpu"))).exists()

timed.clear()
if rank == 0:
    cache.reload()  # reads its file
else:
    cache.clear(cache.device_name(torch.device("cpu")))  # knows nothing, until rank 0 tells
tune(both, directions=("forward",))
report["again"], report["told"] = list(timed), plans(*both)

if rank == 2:  # it may not time: nobody does, and nobody waits
    torch.use_deterministic_algorithms(True)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    report["refused"] = [tune(problem_of(30, 30)), [str(w.message) for w in told], list(timed)]
(place / f"report-{rank}").write_text(json.dumps(report))
dist.destroy_process_group()
