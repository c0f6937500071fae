"""The same bits again."""

# --8<-- [start:deterministic]
import torch

from vicinal import na2d

torch.use_deterministic_algorithms(True)
# --8<-- [end:deterministic]


# --8<-- [start:check]
def gradients() -> tuple[torch.Tensor, ...]:
    """Of one call, from one seed."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 24, 24, 2, 32, generator=generator).requires_grad_() for _ in range(3))
    output = na2d(query, key, value, kernel_size=7)
    return (output, *torch.autograd.grad(output.sin().sum(), (query, key, value)))


assert all(map(torch.equal, gradients(), gradients()))
# --8<-- [end:check]
torch.use_deterministic_algorithms(False)
