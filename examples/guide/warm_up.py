"""Compiling before the first step."""

# --8<-- [start:precompile]
import torch

from vicinal import Neighborhood, precompile
from vicinal.problem import Problem

problem = Problem(
    batch=1,
    lengths=(16, 16),
    heads=2,
    kv_heads=2,
    head_dim=32,
    value_dim=32,
    dtype=torch.float32,
    device=torch.device("cpu"),
    neighborhoods=(Neighborhood.of(2, 7),),
    scale=32**-0.5,
)
kernels = precompile(problem)  # how many there are now, compiled or found on disk
# --8<-- [end:precompile]

# --8<-- [start:log]
import logging

logging.basicConfig()
logging.getLogger("vicinal.compiling").setLevel(logging.INFO)
# --8<-- [end:log]
logging.getLogger("vicinal.compiling").setLevel(logging.NOTSET)
