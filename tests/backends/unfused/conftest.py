"""What tests of the unfused operators' kernels share."""

from launches import alike_launches  # noqa: F401
