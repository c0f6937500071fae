"""Models on a GPU: they train, and as they do with naive attention."""

from importlib.util import find_spec

import pytest
import torch
from torch.nn.functional import cross_entropy

import vicinal

if find_spec("timm") is None:
    pytest.skip("the extra models is not installed", allow_module_level=True)

from vicinal.bench.models.attends import attending, unfused
from vicinal.models import FFHQ_256, Generator

pytestmark = pytest.mark.gpu
CLASSES, STEPS, BATCH = 10, 300, 128


def batch(generator):
    """Images of a class's own pattern under noise, and the classes."""
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    labels = torch.randint(CLASSES, (BATCH,), generator=generator, device="cuda")
    noise = torch.randn(BATCH, 3, 224, 224, generator=generator, device="cuda")
    return torch.nn.functional.interpolate(patterns[labels], 224) + noise, labels


def losses(attend):
    from timm import create_model

    torch.manual_seed(0)
    model = create_model("dinat_tiny", num_classes=CLASSES, drop_path_rate=0.0).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    generator, found = torch.Generator("cuda").manual_seed(0), []
    with attending(attend):
        for _ in range(STEPS):
            images, labels = batch(generator)
            with torch.autocast("cuda", torch.bfloat16):
                loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
    assert all(p.grad.isfinite().all() for p in model.parameters())
    return torch.stack(found).cpu()


@pytest.fixture(autouse=True)
def usual_memory(poisoned_memory):
    """Training is long: filling memory with NaN would make it longer."""
    torch.use_deterministic_algorithms(False)


def test_training_falls_and_is_that_of_naive_attention():
    """Within the noise of training, where roundings grow: that between two unfused ways."""
    curves = {"fused": losses(vicinal.neighborhood_attention)}
    curves |= {variant: losses(unfused(variant)) for variant in ("naive", "gemm")}
    windows = {name: curve.unfold(0, 30, 30).mean(-1) for name, curve in curves.items()}
    print(*(f"loss, means of 30 steps, {name}: {window.tolist()}" for name, window in windows.items()), sep="\n")
    fused, naive, gemm = windows.values()
    assert all(curve.isfinite().all() for curve in curves.values())
    assert fused[-1] < 0.5 * fused[0]
    torch.testing.assert_close(curves["fused"][:10], curves["naive"][:10], rtol=0.05, atol=0.02)
    assert ((fused - naive).abs() <= 0.05 + 0.2 * naive + 2 * (gemm - naive).abs()).all()


def test_generator_is_that_of_naive_attention():
    torch.manual_seed(0)
    generator, noise = Generator(FFHQ_256).cuda().eval(), torch.randn(2, 512, device="cuda")
    with torch.no_grad():
        images = generator(noise)
        with attending(unfused("naive")):
            torch.testing.assert_close(generator(noise), images, rtol=2e-2, atol=2e-2 * float(images.abs().max()))
