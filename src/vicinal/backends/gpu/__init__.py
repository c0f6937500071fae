"""What GPU backends share: launching, devices, caches, kernels' common pieces."""
