"""One of two processes that `test_sharding.py` starts: every case on DTensors, against the same without."""

import json
import sys
import traceback

import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

from vicinal import na1d, neighborhood_attention
from vicinal.geometry.neighborhood import Neighborhood

NAMES = ("query", "key", "value", "additional_keys", "additional_values", "rpb", "key_mask")
SHAPES = ((2, 9, 4, 8), (2, 9, 2, 8), (2, 9, 2, 5), (2, 3, 2, 8), (2, 3, 2, 5), (4, 7), (2, 9))
BATCH = (*(Shard(0),) * 5, Replicate(), Shard(0))
HEADS = (*(Shard(2),) * 5, Shard(0), Replicate())
EVERYWHERE = (Replicate(),) * 7
ALL = NAMES[:6]

# name -> shape of the mesh, placements along each of its dimensions, how many inputs of NAMES, which need gradients
CASES = {
    "batch": ((2,), [BATCH], 7, ALL),
    "heads": ((2,), [HEADS], 7, ALL),
    "replicated": ((2,), [EVERYWHERE], 6, ALL),
    "batch, three tensors": ((2,), [BATCH], 3, ALL),
    "heads, three tensors": ((2,), [HEADS], 3, ALL),
    "only the query's gradient": ((2,), [HEADS], 6, ("query",)),
    "only the bias's gradient, by batch": ((2,), [BATCH], 6, ("rpb",)),
    "batch and heads": ((2, 1), [BATCH, HEADS], 6, ALL),
    "heads and batch": ((1, 2), [BATCH, HEADS], 6, ALL),
    "keys everywhere": ((2,), [(Shard(0), Replicate(), Replicate())], 3, ALL),
}


def check(name):
    shape, placements, count, needed = CASES[name]
    mesh = init_device_mesh("cpu", shape)
    torch.manual_seed(0)
    values = [torch.randn(s, dtype=torch.float64) for s in SHAPES[:count]]
    values[6:] = [t > -0.5 for t in values[6:]]  # the key mask
    plain = [t.clone().requires_grad_(n in needed) for t, n in zip(values, NAMES)]
    split = [
        distribute_tensor(t, mesh, [along[i] for along in placements]).requires_grad_(n in needed)
        for i, (t, n) in enumerate(zip(values, NAMES))
    ]

    def run(tensors):
        extra = dict(zip(NAMES[3:], tensors[3:]))
        # The torch backend: there is no kernel to compile.
        output, lse = na1d(*tensors[:3], 4, dilation=2, return_lse=True, backend="torch", **extra)
        return output, lse, output.sin().sum() + lse.sin().sum()

    with CommDebugMode() as communication:
        output, lse, loss = run(split)
        loss.backward()
    assert communication.get_total_counts() == 0, communication.get_comm_counts()
    true_output, true_lse, true_loss = run(plain)
    true_loss.backward()
    torch.testing.assert_close((output.full_tensor(), lse.full_tensor()), (true_output, true_lse))
    assert output.placements == split[0].placements
    for one, true in zip(split, plain):
        assert (one.grad is None) == (true.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad.full_tensor(), true.grad)


def refused():
    """What a placement that cannot be is answered, by case."""
    mesh = init_device_mesh("cpu", (2,))

    def attend(shapes, dim, neighborhood):
        tensors = [distribute_tensor(torch.zeros(s), mesh, [Shard(dim)]) for s in shapes]
        try:
            neighborhood_attention(*tensors, neighborhood)
        except ValueError as error:
            return str(error)
        return "nothing"

    window = Neighborhood.of(1, 3)
    same = [(2, 8, 4, 8)] * 3
    tensors = [
        distribute_tensor(torch.zeros(s), mesh, [p])
        for s, p in zip(SHAPES[:1] + ((2, 9, 1, 8),) * 2, (Shard(2), Replicate(), Replicate()))
    ]
    try:
        grouped = "nothing"
        na1d(*tensors, 3)
    except ValueError as error:
        grouped = str(error)
    return {
        "head_dim": attend(same, 3, window),
        "heads of one key head": grouped,
        "heads with neighborhoods of their own": attend(same, 2, [window, Neighborhood.of(1, 5)] * 2),
    }


def compiled():
    mesh = init_device_mesh("cpu", (2,))
    tensors = [distribute_tensor(torch.randn(2, 8, 2, 4), mesh, [Shard(0)]) for _ in range(3)]

    def call(*x):
        return na1d(*x, 3, backend="torch")

    found = torch.compile(call, backend="aot_eager", fullgraph=True)(*tensors)
    torch.testing.assert_close(found.full_tensor(), call(*tensors).full_tensor())


def outcome(function, *args):
    try:
        return function(*args)
    except Exception:
        return traceback.format_exc()


if __name__ == "__main__":
    meeting, report, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = {
        "compiled": outcome(compiled),
        **{name: outcome(check, name) for name in CASES},
        "refused": outcome(refused),
    }
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        with open(report, "w") as file:
            json.dump(found, file)
