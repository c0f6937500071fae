"""The processes of `test_distributed.py`, forked after the imports: every case on shards, against the whole in one.

`python process.py MEETING REPORT [CASE...]`: two files, and the cases, all by default.
"""

import faulthandler
import json
import multiprocessing
import random
import sys
import traceback
from datetime import timedelta
from functools import cache

import torch
import torch._dynamo  # here, once for all processes
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.utils.flop_counter import FlopCounterMode

import vicinal
from vicinal import Neighborhood, distributed
from vicinal.distributed import Layout, exchange
from vicinal.geometry.neighborhood import Axis
from vicinal.nn import NeighborhoodAttention2D

PROCESSES = 6
LIMIT = 250  # seconds
EXACT = {"rtol": 1e-9, "atol": 1e-11}
MESHES = {
    "2": ([0, 1], ("a",)),
    "3": ([0, 1, 2], ("a",)),
    "6": (list(range(6)), ("a",)),
    "2x2": ([[0, 1], [2, 3]], ("a", "b")),
    "2x3": ([[0, 1, 2], [3, 4, 5]], ("a", "b")),
    "3x2": ([[0, 1], [2, 3], [4, 5]], ("a", "b")),
}
OF_ALL = ("2x3", "3x2")
meshes: dict[str, DeviceMesh] = {}
RANDOM = 24


def in_mesh(name):
    return meshes[name].get_coordinate() is not None


# Random problems ---------------------------------------------------------------------------------------------------


def drawn(seed):
    """A random problem: mesh, which of its dimensions split which axis, sizes, neighborhoods, shapes, features."""
    rng = random.Random(seed)
    name = list(MESHES)[seed % len(MESHES)]
    rank = rng.choice((1, 2, 2, 3))
    lengths = tuple(rng.randint(6, {1: 40, 2: 12, 3: 8}[rank]) for _ in range(rank))
    heads, kv_heads = rng.choice(((2, 2), (4, 2), (3, 1)))
    axes = []
    for n in lengths:
        dilation = rng.choice((1, 1, 2, 3))
        boundary = rng.choice(("shift", "shift", "clip", "wrap"))
        if boundary == "wrap" and n % dilation:
            dilation = 1
        window = rng.randint(1, n // dilation)
        causal = boundary != "wrap" and rng.random() < 0.3
        axes.append((window, rng.randint(1, window), dilation, causal, boundary))
    every = [Neighborhood(tuple(Axis(*own) for own in axes))]
    if rng.random() < 0.3:
        every += [
            Neighborhood(tuple(Axis(k, rng.randint(1, k), d, c, b) for k, _, d, c, b in axes)) for _ in range(heads - 1)
        ]
    dims = MESHES[name][1]
    split = {dim: rng.randrange(rank) for dim in dims if rng.random() < 0.8} or {dims[-1]: 0}
    if name not in OF_ALL:  # a group along several dimensions is made by all processes
        split = dict([*split.items()][:1])
    return rng, name, lengths, heads, kv_heads, every, split


def random_case(seed):
    rng, name, lengths, heads, kv_heads, every, split = drawn(seed)
    if not in_mesh(name):
        return
    mesh = meshes[name]
    sizes = {}
    for dim, axis in split.items():
        if list(split.values()).count(axis) == 1 and rng.random() < 0.4:
            parts = mesh.size(MESHES[name][1].index(dim))
            cuts = sorted(rng.randint(0, lengths[axis]) for _ in range(parts - 1))
            sizes[axis] = tuple(b - a for a, b in zip((0, *cuts), (*cuts, lengths[axis])))
    layout = Layout.of(mesh, split, lengths, sizes)
    generator = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k, v = make(2, *lengths, heads, 6), make(2, *lengths, kv_heads, 6), make(2, *lengths, kv_heads, 5)
    extra = {}
    if rng.random() < 0.5:
        extra = {"additional_keys": make(2, 3, kv_heads, 6), "additional_values": make(2, 3, kv_heads, 5)}
    if rng.random() < 0.5:
        extra["rpb"] = make(heads, *(2 * a.window - 1 for a in every[0].axes))
    above = make(2, *lengths, heads, 5), make(2, *lengths, heads)
    mask = torch.rand((2, *lengths), generator=generator) < 0.8 if rng.random() < 0.4 else None
    given = {"neighborhood": every[0] if len(every) == 1 else every, "return_lse": True, "backend": "torch"}

    def run(function, tensors, above, **more):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        shared = {key: t.detach().clone().requires_grad_() for key, t in extra.items()}
        results = function(*leaves, **given, **shared, **more)
        every_leaf = [*leaves, *shared.values()]
        return results, torch.autograd.grad(results, every_leaf, above)

    truth, true_grads = run(vicinal.neighborhood_attention, (q, k, v), above, key_mask=mask)
    own = [layout.local(t) for t in (q, k, v)]
    found, grads = run(
        distributed.neighborhood_attention, own, [layout.local(t) for t in above],
        layout=layout, overlap=rng.choice((True, True, False, None)),
        key_mask=None if mask is None else layout.local(mask),
    )  # fmt: skip
    torch.testing.assert_close(found, tuple(layout.local(t) for t in truth), **EXACT)
    torch.testing.assert_close(grads[:3], tuple(layout.local(t) for t in true_grads[:3]), **EXACT)
    for share, true in zip(grads[3:], true_grads[3:]):
        total = share.clone()
        dist.all_reduce(total, group=layout.group)
        torch.testing.assert_close(total, true, **EXACT)


# What is sent ------------------------------------------------------------------------------------------------------


def counted():
    """What goes over the network is what the plan counts; and the same bits come home every time."""
    if not in_mesh("3"):
        return
    layout = Layout.of(meshes["3"], {"a": 0}, (18, 5))
    sent = []
    before = exchange.all_to_all

    def watched(packed, received, sizes, group):
        sent.append((packed.nbytes, sum(received)))
        return before(packed, received, sizes, group)

    exchange.all_to_all = watched
    try:
        generator = torch.Generator().manual_seed(layout.rank)
        q, k, v, above = (torch.randn(1, 6, 5, 2, 8, generator=generator) for _ in range(4))
        grads = []
        for _ in range(2):
            leaves = [t.clone().requires_grad_() for t in (q, k, v)]
            output = distributed.na2d(*leaves, (5, 3), layout=layout, backend="torch")
            grads.append(torch.autograd.grad(output, leaves, above))
    finally:
        exchange.all_to_all = before
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    plan = distributed.Halo((Neighborhood.of(2, (5, 3)),), (18, 5), layout.shards)
    per_token = 2 * 2 * 8
    rows = plan.tokens_sent(layout.rank), plan.tokens_received(layout.rank)
    forward, home = (4 * per_token * rows[0], per_token * rows[1]), (4 * per_token * rows[1], per_token * rows[0])
    assert sent == [forward, home] * 2
    assert rows == ((20, 20) if layout.rank == 1 else (10, 10))
    with FlopCounterMode(display=False) as counter:
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        distributed.na2d(*leaves, (5, 3), layout=layout, backend="torch").sum().backward()
    scores = 2 * 6 * 5 * 5 * 3  # heads, queries, windows
    assert counter.get_total_flops() == 2 * scores * (2 * 8 + 5 * 8)


# DTensors ----------------------------------------------------------------------------------------------------------

SPLITS = {  # of [B, X0, X1, H, D]
    "rows": ("2", (Shard(1),)),
    "columns over three": ("3", (Shard(2),)),
    "batch and rows": ("2x2", (Shard(0), Shard(1))),
    "rows and columns": ("3x2", (Shard(1), Shard(2))),
    "rows and heads": ("2x2", (Shard(1), Shard(3))),
    "rows and rows": ("2x3", (Shard(1), Shard(1))),
    "rows, the same on two": ("2x3", (Replicate(), Shard(1))),
}


def dtensors(case):
    name, placements = SPLITS[case]
    if not in_mesh(name):
        return
    mesh = meshes[name]
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 11, 7, 4, 6), (2, 11, 7, 2, 6), (2, 11, 7, 2, 5), (2, 3, 2, 6), (2, 3, 2, 5), (4, 9, 5))
    values = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    names = ("additional_keys", "additional_values", "rpb")

    def run(tensors):
        output, lse = vicinal.na2d(
            *tensors[:3], (5, 3), return_lse=True, backend="torch", **dict(zip(names, tensors[3:6])),
            key_mask=tensors[6],
        )  # fmt: skip
        return output, lse, output.sin().sum() + lse.sin().sum()

    there = torch.rand(2, 11, 7, generator=generator) < 0.8
    plain = [*(t.clone().requires_grad_() for t in values), there]
    true_output, true_lse, loss = run(plain)
    loss.backward()
    split = [
        distribute_tensor(t, mesh, placements if i < 3 else [Replicate()] * mesh.ndim).requires_grad_()
        for i, t in enumerate(values)
    ]
    split.append(distribute_tensor(there, mesh, [Replicate()] * mesh.ndim))
    output, lse, loss = run(split)
    loss.backward()
    assert output.placements == lse.placements == split[0].placements
    torch.testing.assert_close((output.full_tensor(), lse.full_tensor()), (true_output, true_lse), **EXACT)
    for one, true in zip(split[:6], plain[:6]):
        torch.testing.assert_close(one.grad.full_tensor(), true.grad, **EXACT)


# Modules, compiled code --------------------------------------------------------------------------------------------


def model_and_maps():
    torch.manual_seed(0)
    layers = [NeighborhoodAttention2D(16, 2, (5, 3), rpb=True) for _ in range(2)]
    x = torch.randn(4, 8, 6, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.nn.Sequential(*layers).double(), x


@cache
def whole_gradients():
    """Called before processes are forked, so that kernels are compiled once, not by each of them."""
    model, x = model_and_maps()
    return torch.autograd.grad(model(x).square().sum(), list(model.parameters()))


def modules():
    """FSDP2 along one dimension of a mesh, a map split along the other: a step of training as in one process."""
    if not in_mesh("2x2"):
        return
    mesh = meshes["2x2"]
    model, x = model_and_maps()
    split = parallelize_module(model, mesh["b"], {"*": distributed.SplitMap(axis=0)})
    fully_shard(split, mesh=mesh["a"])
    data, part = mesh.get_coordinate()
    own = x.chunk(2, 0)[data].chunk(2, 1)[part]
    split(own).square().sum().backward()
    for true, parameter in zip(whole_gradients(), split.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor() * 2, true)  # FSDP2 takes means


def compiled():
    if not in_mesh("2"):
        return
    layout = Layout.of(meshes["2"], {"a": 0}, (16, 5))
    generator = torch.Generator().manual_seed(layout.rank)
    leaves = [torch.randn(1, 8, 5, 2, 8, generator=generator).requires_grad_() for _ in range(3)]

    def call(q, k, v):
        return distributed.na2d(q, k, v, (5, 3), layout=layout, backend="torch")

    results = [f(*leaves) for f in (call, torch.compile(call, backend="aot_eager", fullgraph=True))]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(r.square().sum(), leaves) for r in results))


# Errors ------------------------------------------------------------------------------------------------------------


def refused():
    """What every rank is told, by case."""
    if not in_mesh("2"):
        return {}
    mesh = meshes["2"]
    rank = mesh.get_local_rank()
    layout = Layout.of(mesh, {"a": 0}, (8, 6))
    x = torch.zeros(1, 4, 6, 2, 8)

    def told(function, *args, **kwargs):
        try:
            function(*args, **kwargs)
        except (TypeError, ValueError) as error:
            return str(error)
        return "nothing"

    split = distribute_tensor(torch.zeros(1, 8, 6, 2, 8), mesh, [Shard(1)])
    return {
        "windows that differ": told(distributed.na2d, x, x, x, 3 + 2 * rank, layout=layout),
        "a shape that differs": told(distributed.na2d, x, x[:, :, :, :2], x, 3, layout=layout, scale=0.5 + rank),
        "another shard": told(distributed.na2d, x[:, : 4 - rank], x, x, 3, layout=layout),
        "a window larger than the map": told(distributed.na2d, x, x, x, 7, layout=layout),
        "no layout": told(distributed.na2d, x, x, x, 3, layout=None),
        "an axis that there is not": told(Layout.of, mesh, {"a": 2}, (8, 6)),
        "a dimension that there is not": told(Layout.of, mesh, {"c": 0}, (8, 6)),
        "sizes that do not add up": told(Layout.of, mesh, {"a": 0}, (8, 6), {0: (3, 4)}),
        "plain keys": told(vicinal.na2d, split, torch.zeros(1, 8, 6, 2, 8), split, 3),
    }


# ------------------------------------------------------------------------------------------------------------------

CASES = {
    **{f"random {seed}": (random_case, seed) for seed in range(RANDOM)},
    "counted": (counted,),
    **{f"dtensor: {name}": (dtensors, name) for name in SPLITS},
    "modules": (modules,),
    "compiled": (compiled,),
}


def outcome(function, *args):
    try:
        return function(*args)
    except Exception:
        return traceback.format_exc()


def main(rank, meeting, report, chosen):
    """One process."""
    faulthandler.dump_traceback_later(LIMIT, exit=True)  # rather than wait for ever
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=LIMIT)
    )
    for name, (ranks, dims) in MESHES.items():
        meshes[name] = DeviceMesh("cpu", ranks, mesh_dim_names=dims)
    found = {name: outcome(*CASES[name]) for name in chosen}
    found["refused"] = outcome(refused)
    everyone = [None] * PROCESSES
    dist.all_gather_object(everyone, found)
    dist.destroy_process_group()
    if rank == 0:
        merged = {name: [own[name] for own in everyone if own[name]] for name in found}
        with open(report, "w") as file:
            json.dump(merged, file)


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    chosen = sys.argv[3:] or list(CASES)
    if "modules" in chosen:
        whole_gradients()
    arguments = (*sys.argv[1:3], chosen)
    processes = [fork.Process(target=main, args=(rank, *arguments)) for rank in range(PROCESSES)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    sys.exit(max(abs(each.exitcode) for each in processes))
