"""Local attention with some tokens that everyone sees."""

# --8<-- [start:additional]
import torch

from vicinal import attention, merge_attentions, na2d

torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 32, 32, 4, 16)  # [B, height, width, heads, head dim] each
global_key, global_value = torch.randn(2, 1, 8, 4, 16)  # [B, tokens, heads, head dim]: 8 global tokens

output = na2d(query, key, value, kernel_size=7, additional_keys=global_key, additional_values=global_value)
# --8<-- [end:additional]

# --8<-- [start:update]
global_query = torch.randn(1, 8, 4, 16)
all_keys = torch.cat([global_key, key.flatten(1, 2)], dim=1)
all_values = torch.cat([global_value, value.flatten(1, 2)], dim=1)
updated = attention(global_query, all_keys, all_values)  # [B, 8, heads, head dim]
# --8<-- [end:update]

# --8<-- [start:merge]
local, local_lse = na2d(query, key, value, kernel_size=7, return_lse=True)
far, far_lse = attention(query.flatten(1, 2), global_key, global_value, return_lse=True)
far, far_lse = far.view_as(local), far_lse.view_as(local_lse)

merged, merged_lse = merge_attentions([local, far], [local_lse, far_lse])
torch.testing.assert_close(merged, output)
# --8<-- [end:merge]
assert updated.shape == global_query.shape
