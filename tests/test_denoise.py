import math

import numpy as np
import pytest
import torch

import vicinal.denoise as module
from vicinal.denoise import denoise, estimate_noise


def picture(height=24, width=30, channels=3, dtype=torch.float64):
    """A smooth colour ramp with an edge, values from 0 to 1."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    planes = [0.3 + 0.4 * x, 0.2 + 0.5 * y, (x + y > 1).float() * 0.6 + 0.2]
    return torch.stack(planes[:channels], dim=-1).to(dtype)


def noisy_picture(sigma, **options):
    clean = picture(**options)
    generator = torch.Generator().manual_seed(0)
    return clean, clean + sigma * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)


def psnr(image, clean):
    return -10 * math.log10(float((image - clean).square().mean()))


def non_local_means(image, window, patch, h):
    """The definition, pixel by pixel."""
    reach, border, spread = window // 2, patch // 2, (patch - 1) / 4
    height, width, channels = image.shape
    padded = np.pad(image, ((border, border), (border, border), (0, 0)), mode="reflect")
    y, x = np.mgrid[-border : border + 1, -border : border + 1]
    weight = np.exp(-(x**2 + y**2) / (2 * spread**2))
    weight /= weight.sum() * channels
    result = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            own = padded[row : row + patch, column : column + patch]
            total, mean = 0.0, np.zeros(channels)
            for i in range(max(row - reach, 0), min(row + reach + 1, height)):
                for j in range(max(column - reach, 0), min(column + reach + 1, width)):
                    other = padded[i : i + patch, j : j + patch]
                    w = math.exp(-(weight[..., None] * (own - other) ** 2).sum() / h**2)
                    total += w
                    mean += w * image[i, j]
            result[row, column] = mean / total
    return result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("window", "patch", "strength"), [(5, 3, 0.8), (7, 5, 2.0), (31, 5, 1.0)])
def test_it_is_the_definition(window, patch, strength, channels):
    _, noisy = noisy_picture(0.1, height=13, width=11, channels=channels)
    expected = non_local_means(noisy.numpy(), window, patch, strength * 0.1)
    result = denoise(noisy, window, patch, strength, 0.1, debias=False)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-12)
    single = denoise(noisy.float(), window, patch, strength, 0.1, debias=False)
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=2e-5)


def test_it_agrees_with_scikit_image():
    restoration = pytest.importorskip("skimage.restoration")
    _, noisy = noisy_picture(0.1)
    h = 1.0  # no distance reaches scikit-image's cut-off of 5 (in units of h^2)
    result = denoise(noisy, 7, 5, h / 0.1, 0.1, debias=False)
    peer = restoration.denoise_nl_means(noisy.numpy(), 5, 3, h=h, fast_mode=False, sigma=0, channel_axis=-1)
    # Its exp is approximate, off by up to 4% of a weight either way, so a mean moves by up to 8% of a window's spread.
    spread = noisy.reshape(-1, 3).amax(0) - noisy.reshape(-1, 3).amin(0)
    np.testing.assert_allclose(result.numpy(), peer, rtol=0, atol=0.08 * float(spread.max()))
    assert np.abs(result.numpy() - peer).mean() < 1e-3


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2])
def test_noise_goes_and_debiasing_helps(sigma):
    clean, noisy = noisy_picture(sigma, height=48, width=48)
    biased, result = denoise(noisy, sigma=sigma, debias=False), denoise(noisy, sigma=sigma)
    assert psnr(biased, clean) > psnr(noisy, clean) + 5
    assert psnr(result, clean) > psnr(biased, clean) + 1


def test_it_is_no_worse_than_scikit_image():
    restoration = pytest.importorskip("skimage.restoration")
    clean, noisy = noisy_picture(0.1, height=48, width=48)
    peer = restoration.denoise_nl_means(noisy.numpy(), 5, 10, h=0.08, fast_mode=False, sigma=0.1, channel_axis=-1)
    assert psnr(denoise(noisy, sigma=0.1), clean) >= psnr(torch.from_numpy(peer), clean)


def test_blocks_change_nothing(monkeypatch):
    _, noisy = noisy_picture(0.1)
    whole = denoise(noisy, window=5)
    calls = []
    monkeypatch.setattr(module, "BLOCK", 10)
    blocks = denoise(noisy, window=5, progress=lambda done, pixels: calls.append((done, pixels)))
    torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-12)
    assert calls == [(80 * i, 720) for i in range(1, 10)]


def test_grey_is_one_channel():
    _, noisy = noisy_picture(0.1, channels=1)
    torch.testing.assert_close(denoise(noisy[..., 0], 7), denoise(noisy, 7)[..., 0], rtol=0, atol=0)


@pytest.mark.parametrize("strength", [0.05, 0.3, 5.0])
def test_any_strength_stays_within_the_picture(strength):
    _, noisy = noisy_picture(0.1, dtype=torch.float32)
    result = denoise(noisy, 9, strength=strength, sigma=0.1)
    margin = 0.5  # debiasing goes past the mean, by a fraction of the noise
    assert (result > noisy.min() - margin).all()
    assert (result < noisy.max() + margin).all()


def test_no_strength_leaves_the_picture():
    _, noisy = noisy_picture(0.1)
    torch.testing.assert_close(denoise(noisy, 9, strength=0.05, sigma=0.1), noisy, rtol=0, atol=1e-6)


def test_a_window_of_one_leaves_the_picture():
    _, noisy = noisy_picture(0.1)
    torch.testing.assert_close(denoise(noisy, window=1), noisy)


@pytest.mark.parametrize("factor", [1e-3, 255.0])
def test_units_do_not_matter(factor):
    _, noisy = noisy_picture(0.1)
    torch.testing.assert_close(denoise(noisy * factor, 7), denoise(noisy, 7) * factor, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_shape_stay(dtype):
    _, noisy = noisy_picture(0.1)
    before = noisy.to(dtype)
    given = before.clone()
    result = denoise(given, 5)
    assert (result.dtype, result.shape) == (dtype, noisy.shape)
    torch.testing.assert_close(given, before, rtol=0, atol=0)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
def test_noise_estimate(sigma):
    _, noisy = noisy_picture(sigma, height=128, width=129)
    assert estimate_noise(noisy) == pytest.approx(sigma, rel=0.05)


IMAGE = torch.rand(8, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": [[1.0]]}, TypeError, "image must be a floating-point tensor, got list"),
        ({"image": torch.ones(8, 8, dtype=torch.uint8)}, TypeError, r"image .* got a tensor of torch.uint8"),
        ({"image": torch.rand(2, 8, 8, 3)}, ValueError, r"image must be \[H, W\] or \[H, W, C\], got shape \(2, 8, 8"),
        ({"image": torch.rand(2, 8)}, ValueError, r"image must have more than patch // 2 = 2 rows .* \(2, 8\)"),
        ({"image": torch.rand(8, 8, 0)}, ValueError, r"image must have .* got shape \(8, 8, 0\)"),
        ({"image": torch.zeros(8, 8)}, ValueError, "sigma: the noise of this image is estimated as 0"),
        ({"window": 4}, ValueError, "window must be odd and at least 1, got 4"),
        ({"window": -1}, ValueError, "window must be odd and at least 1, got -1"),
        ({"window": 5.0}, TypeError, "window must be an int, got 5.0"),
        ({"patch": 0}, ValueError, "patch must be odd and at least 1, got 0"),
        ({"patch": True}, TypeError, "patch must be an int, got True"),
        ({"strength": 0}, ValueError, "strength must be finite and above 0, got 0"),
        ({"strength": math.nan}, ValueError, "strength must be finite and above 0, got nan"),
        ({"strength": None}, TypeError, "strength must be a number, got None"),
        ({"sigma": -0.1}, ValueError, "sigma must be finite and above 0, got -0.1"),
        ({"sigma": "auto"}, TypeError, "sigma must be a number, got 'auto'"),
    ],
)
def test_wrong_calls(arguments, error, message):
    with pytest.raises(error, match=message):
        denoise(**({"image": IMAGE} | arguments))


@pytest.mark.parametrize("image", [[1.0], torch.ones(9, 9, dtype=torch.uint8)], ids=["list", "integers"])
def test_estimate_needs_numbers(image):
    with pytest.raises(TypeError, match="image must be a floating-point tensor, got "):
        estimate_noise(image)


def test_estimate_needs_two_rows():
    with pytest.raises(ValueError, match="image must have at least 2 rows and 2 columns"):
        estimate_noise(torch.rand(1, 5))


@pytest.mark.parametrize("shape", [(3, 40, 50), (1, 16, 16), (4, 9, 5), (31, 64, 64)], ids=str)
def test_channels_first_is_refused(shape):
    with pytest.raises(ValueError, match=r"more channels than rows; if it is \[C, H, W\], pass image.movedim\(0, -1\)"):
        denoise(torch.rand(shape), sigma=0.1)


@pytest.mark.parametrize("shape", [(3, 40, 4), (9, 9, 9), (40, 3, 3)], ids=str)
def test_rows_may_be_few(shape):
    assert denoise(torch.rand(shape), 3, 3, sigma=0.1).shape == shape


@pytest.mark.parametrize("window", [1, 5, 9999])
def test_cost_counts_the_scores_of_clipped_windows(window):
    height, width, channels, patch = 6, 9, 2, 3
    scores = sum(
        sum(abs(i - k) <= window // 2 for i in range(height) for k in range(height))
        * sum(abs(i - k) <= window // 2 for i in [j] for k in range(width))
        for j in range(width)
    )
    found = module.cost(height, width, channels, window, patch)
    assert found.flops == 2 * scores * (patch * patch * channels + 1 + channels)
    assert found.bytes == 4 * (module.COPIES * height * width * 19 + 4 * height * width * channels)
