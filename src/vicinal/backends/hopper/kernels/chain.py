"""Kernels that are launched before the one ahead has ended (CUDA's programmatic dependent launch).

A launch, and what is computed before `await_previous`, are hidden behind the end of the kernel ahead. In a kernel whose
warps specialise it is called by the producer, before its first copy, and by a consumer only where it loads from global
memory itself: whatever else a consumer does there comes after tiles that the producer has copied.
"""

from vicinal.backends.gpu.kernels import memory
from vicinal.backends.hopper.kernels.compat import import_triton

await_previous = import_triton(memory.await_previous)
let_next_start = import_triton(memory.let_next_start)
