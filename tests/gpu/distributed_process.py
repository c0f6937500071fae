"""Run by torchrun, a process for each GPU: maps split over them by NCCL, against one process. Prints what is wrong.

`torchrun --standalone --nproc-per-node N tests/gpu/distributed_process.py`
"""

from __future__ import annotations

import os
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import vicinal
from vicinal import Neighborhood, distributed
from vicinal.distributed import Layout

CASES = {  # lengths, neighborhood's arguments, axis that is split, head dim
    "1d": ((2000,), {"kernel_size": 301}, 0, 128),
    "1d-causal": ((2000,), {"kernel_size": 301, "is_causal": True}, 0, 64),
    "1d-dilated-stride": ((2000,), {"kernel_size": 40, "dilation": 3, "stride": 4}, 0, 64),
    "1d-beyond-a-shard": ((600,), {"kernel_size": 500}, 0, 64),
    "2d": ((96, 80), {"kernel_size": 13}, 0, 128),
    "2d-columns": ((61, 90), {"kernel_size": (7, 20)}, 1, 64),
    "2d-circle": ((61, 90), {"kernel_size": (7, 20), "boundary": ("shift", "wrap")}, 1, 48),
    "2d-clip": ((96, 80), {"kernel_size": 17, "boundary": "clip"}, 0, 32),
    "3d-time": ((15, 24, 20), {"kernel_size": (9, 12, 7)}, 0, 128),
    "3d-height": ((15, 24, 20), {"kernel_size": (9, 12, 7), "stride": (1, 4, 1)}, 1, 128),
}


def grads(attend, tensors, above):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    output = attend(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, above)]


def close(found, true):
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=0.02, atol=0.02 * float(b.abs().max()))


def check(name, mesh, device):
    lengths, arguments, axis, dim = CASES[name]
    window = Neighborhood.of(len(lengths), **arguments)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, above = (
        torch.randn(2, *lengths, 2, dim, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(4)
    )
    truth = grads(lambda q, k, v: vicinal.neighborhood_attention(q, k, v, window), (q, k, v), above)
    layout = Layout.of(mesh, {"cp": axis}, lengths)
    own = [layout.local(t) for t in truth]
    shards = [layout.local(t).contiguous() for t in (q, k, v)]
    for overlap in (True, False, None):

        def attend(q, k, v, overlap=overlap):
            return distributed.neighborhood_attention(q, k, v, window, layout=layout, overlap=overlap)

        first = grads(attend, shards, layout.local(above))
        close(first, own)
        again = grads(attend, shards, layout.local(above))
        assert torch.equal(first[0], again[0])
    split = [distribute_tensor(t, mesh, [Shard(1 + axis)]) for t in (q, k, v, above)]
    found = grads(lambda q, k, v: vicinal.neighborhood_attention(q, k, v, window), split[:3], split[3])
    close([t.to_local() for t in found], own)


def compiled(mesh, device):
    layout = Layout.of(mesh, {"cp": 0}, (64, 40))
    shape = (1, *layout.own_lengths, 2, 64)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))

    def attend(q, k, v):
        return distributed.na2d(q, k, v, 9, layout=layout)

    above = torch.randn(shape, device=device, dtype=torch.bfloat16)
    close(grads(torch.compile(attend, fullgraph=True), (q, k, v), above), grads(attend, (q, k, v), above))


def main() -> int:
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    dist.init_process_group("nccl", timeout=timedelta(seconds=120))
    mesh = init_device_mesh("cuda", (dist.get_world_size(),), mesh_dim_names=("cp",))
    wrong = []
    for name in [*CASES, "compiled"]:
        try:
            compiled(mesh, device) if name == "compiled" else check(name, mesh, device)
        except Exception:
            wrong.append(name)
            print(f"rank {rank}, {name}: {traceback.format_exc()[-1500:]}", flush=True)
    dist.destroy_process_group()
    print(f"rank {rank}: {len(CASES) + 1 - len(wrong)} of {len(CASES) + 1} right", flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
