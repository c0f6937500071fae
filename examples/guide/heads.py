"""A neighborhood of its own for each head."""

# --8<-- [start:function]
import torch

from vicinal import Neighborhood, NeighborhoodAttention2D, neighborhood_attention

heads = [
    Neighborhood.of(2, 3),  # the nearest 3x3
    Neighborhood.of(2, 7),
    Neighborhood.of(2, 7, dilation=4),  # as many keys, four apart
    Neighborhood.of(2, (1, None)),  # the whole row
]
torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 28, 28, 4, 16)
output = neighborhood_attention(query, key, value, heads)
# --8<-- [end:function]

# --8<-- [start:module]
module = NeighborhoodAttention2D(64, num_heads=4, kernel_size=heads)
module(torch.randn(1, 28, 28, 64))
# --8<-- [end:module]
for i, neighborhood in enumerate(heads):
    q, k, v = (t[..., i : i + 1, :] for t in (query, key, value))
    torch.testing.assert_close(output[..., i : i + 1, :], neighborhood_attention(q, k, v, neighborhood))
