"""Training and deployment: autocast, torch.compile, export, checkpointing, several processes."""

# --8<-- [start:autocast]
import torch
from torch import nn

from vicinal import NeighborhoodAttention2D

torch.manual_seed(0)
block = nn.Sequential(nn.LayerNorm(32), NeighborhoodAttention2D(32, num_heads=2, kernel_size=5))
x = torch.randn(2, 12, 12, 32)

with torch.autocast("cpu", dtype=torch.bfloat16):  # "cuda" on a GPU
    output = block(x)
    loss = output.float().square().mean()
loss.backward()  # parameters and their gradients stay float32
# --8<-- [end:autocast]
assert output.dtype == torch.bfloat16
assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())

# --8<-- [start:compile]
compiled = torch.compile(
    block, fullgraph=True, backend="aot_eager"
)  # without `backend` it is Inductor, with its fusion
torch.testing.assert_close(compiled(x), block(x))
# --8<-- [end:compile]

# --8<-- [start:export]
batch = torch.export.Dim("batch", max=64)
program = torch.export.export(block.eval(), (x,), dynamic_shapes=({0: batch},))
torch.export.save(program, "block.pt2")

loaded = torch.export.load("block.pt2").module()  # in a process that has imported vicinal
torch.testing.assert_close(loaded(x[:1].repeat(3, 1, 1, 1)), block(x[:1].repeat(3, 1, 1, 1)))
# --8<-- [end:export]

# --8<-- [start:checkpoint]
from torch.utils.checkpoint import checkpoint

block.train()
checkpoint(block, x, use_reentrant=False).sum().backward()
# --8<-- [end:checkpoint]
