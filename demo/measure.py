"""One denoiser in a process of its own, so that its seconds and its peak memory are its own.

Usage: measure.py METHOD NOISY.npy OUT.npy SIGMA; prints JSON. Imports nothing that the method does not need.
"""

import json
import sys
import time

import numpy as np

WINDOW, PATCH, STRENGTH = 21, 5, 0.8


def ours(noisy: np.ndarray, sigma: float) -> tuple[np.ndarray, float]:
    """Our image and its seconds, imports not counted, nor the compilation of kernels on a machine's first run."""
    import torch

    from vicinal.denoise import denoise

    denoise(torch.from_numpy(noisy[: 2 * WINDOW, : 2 * WINDOW]), WINDOW, PATCH, STRENGTH, sigma)
    start = time.perf_counter()
    image = denoise(torch.from_numpy(noisy), WINDOW, PATCH, STRENGTH, sigma)
    return image.numpy(), time.perf_counter() - start


def theirs(noisy: np.ndarray, sigma: float, *, fast: bool, strength: float) -> tuple[np.ndarray, float]:
    """scikit-image's image and its seconds, imports not counted."""
    from skimage.restoration import denoise_nl_means

    start = time.perf_counter()
    image = denoise_nl_means(
        noisy, PATCH, WINDOW // 2, h=strength * sigma, fast_mode=fast, sigma=sigma, channel_axis=-1
    )
    return image, time.perf_counter() - start


METHODS = {
    "vicinal": ours,
    "scikit-image": lambda noisy, sigma: theirs(noisy, sigma, fast=False, strength=STRENGTH),
    # The strength that scikit-image's own example gives for its fast mode, whose patches are not Gaussian-weighted.
    "scikit-image fast": lambda noisy, sigma: theirs(noisy, sigma, fast=True, strength=0.6),
}


def peak_mib() -> float:
    """Peak resident memory of this process. `ru_maxrss` would count what the parent held before exec."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024


def main() -> None:
    """Run the method that the command line names."""
    method, source, target, sigma = sys.argv[1:]
    image, seconds = METHODS[method](np.load(source), float(sigma))
    np.save(target, image)
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
