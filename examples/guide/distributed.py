"""Data parallel training; start it with `torchrun --nproc-per-node 2 examples/guide/distributed.py`."""

# --8<-- [start:ddp]
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vicinal import NeighborhoodAttention2D


class Block(nn.Module):
    """Neighborhood attention, added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.attention = NeighborhoodAttention2D(32, num_heads=2, kernel_size=5)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, height, width, 32]` to the same shape."""
        return x + self.attention(self.norm(x))


dist.init_process_group("gloo")  # "nccl" on GPUs
torch.manual_seed(dist.get_rank())
x = torch.randn(2, 12, 12, 32)  # each process its own part of the batch

model = nn.Sequential(Block(), Block())
parallel = DistributedDataParallel(model)  # all start with the parameters of the first
parallel(x).square().mean().backward()
# --8<-- [end:ddp]

# --8<-- [start:fsdp]
sharded = nn.Sequential(Block(), Block())
sharded.load_state_dict(model.state_dict())
mesh = init_device_mesh("cpu", (dist.get_world_size(),))  # "cuda" on GPUs
for block in (*sharded, sharded):
    fully_shard(block, mesh=mesh)
sharded(x).square().mean().backward()
# --8<-- [end:fsdp]
for p, q in zip(model.parameters(), sharded.parameters()):
    assert isinstance(q.grad, DTensor)
    torch.testing.assert_close(p.grad, q.grad.full_tensor())
dist.destroy_process_group()
