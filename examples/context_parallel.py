"""One image over several processes: `torchrun --nproc-per-node 2 examples/context_parallel.py`."""

# --8<-- [start:training]
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from vicinal import NeighborhoodAttention2D
from vicinal.distributed import SplitMap

dist.init_process_group("gloo")  # "nccl" on GPUs
mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("cp",))  # "cuda" on GPUs
torch.manual_seed(0)  # parameters and data are the same everywhere
model = nn.Sequential(nn.Linear(3, 32), NeighborhoodAttention2D(32, 2, kernel_size=7), nn.Linear(32, 3))
parallelize_module(model, mesh, {"*": SplitMap(axis=0)})  # rows of the image are split
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
clean = torch.linspace(0, 12, 24).sin().expand(1, 3, 24, 24).permute(0, 2, 3, 1)
own = clean.chunk(dist.get_world_size(), 1)[dist.get_rank()]  # our rows
for step in range(21):
    noisy = (clean + 0.3 * torch.randn(clean.shape)).chunk(dist.get_world_size(), 1)[dist.get_rank()]
    loss = (model(noisy) - own).square().sum() / clean.numel()  # our share of it
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    # --8<-- [end:training]
    if step % 10 == 0:
        whole = loss.detach().clone()
        dist.all_reduce(whole)
        if dist.get_rank() == 0:
            print(f"step {step}: loss {float(whole):.6f}, {len(own[0])} of 24 rows here")
dist.destroy_process_group()
