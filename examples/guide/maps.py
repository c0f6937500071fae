"""Dropout of attention weights, and a map of them drawn over a photo (attention.png, in the current folder)."""

import torch
from torch import nn

from vicinal import NeighborhoodAttention2D

# --8<-- [start:module]
block = NeighborhoodAttention2D(64, num_heads=4, kernel_size=7, attn_drop=0.1)
# --8<-- [end:module]
block(torch.randn(1, 14, 14, 64)).sum().backward()

# --8<-- [start:operators]
from vicinal import na2d
from vicinal.unfused import na2d_av, na2d_qk

torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 28, 28, 4, 16)

scores = na2d_qk(query, key, kernel_size=7, scale=query.shape[-1] ** -0.5)  # their scale is 1 if none is given
weights = scores.softmax(-1)  # [B, height, width, heads, 49]
output = na2d_av(weights, value, kernel_size=7)
torch.testing.assert_close(output, na2d(query, key, value, kernel_size=7))  # the same, fused

dropped = na2d_av(nn.functional.dropout(weights, 0.1), value, kernel_size=7)
# --8<-- [end:operators]
assert not torch.equal(dropped, output)

# --8<-- [start:picture]
from matplotlib.figure import Figure
from skimage.data import astronaut

from vicinal import plot_attention

photo = torch.from_numpy(astronaut())  # [512, 512, 3]
patches = nn.functional.avg_pool2d(photo.permute(2, 0, 1) / 255.0, 4)  # [3, 128, 128]
patches = nn.functional.unfold(patches[None], 3, padding=1, stride=2).view(1, 27, 64, 64)
tokens = patches.permute(0, 2, 3, 1)[..., None, :]  # [1, 64, 64, 1 head, 27]: each is its patch
tokens = nn.functional.normalize(tokens - tokens.mean((1, 2), keepdim=True), dim=-1)

weights = na2d_qk(tokens, tokens, kernel_size=31, scale=10.0).softmax(-1)
figure = Figure()
plot_attention(weights, query=(40, 22), neighborhood=31, image=photo, axes=figure.add_subplot())
figure.savefig("attention.png")
# --8<-- [end:picture]
