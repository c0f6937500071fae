"""Models on a GPU: they train, and as they do with naive attention."""

from importlib.util import find_spec

import pytest
import torch

if find_spec("timm") is None:
    pytest.skip("the extra models is not installed", allow_module_level=True)

from vicinal.bench.models.attends import attending, unfused
from vicinal.bench.models.curve import train
from vicinal.bench.models.rows import Row
from vicinal.models import FFHQ_256, Generator

pytestmark = pytest.mark.gpu
ROW, STEPS = Row("dinat_tiny", torch.bfloat16, 128, True), 300


@pytest.fixture(autouse=True)
def usual_memory(poisoned_memory):
    """Training is long: filling memory with NaN would make it longer."""
    torch.use_deterministic_algorithms(False)


def test_training_falls_and_is_that_of_naive_attention():
    """Over the first steps but for rounding, over all within what roundings grow to: means of 30 steps.

    On an H200 the first were off by at most 0.0012, the means by 0.0004.
    """
    fused, naive = (train(ROW, system, torch.device("cuda"), STEPS) for system in ("fused", "naive"))
    assert fused.isfinite().all()
    torch.testing.assert_close(fused[:10], naive[:10], rtol=0.02, atol=1e-4)
    means = [curve.unfold(0, 30, 30).mean(-1) for curve in (fused, naive)]
    print(*(f"loss, means of 30 steps: {each.tolist()}" for each in means), sep="\n")
    assert means[0][-1] < 0.5 * means[0][0]
    torch.testing.assert_close(*means, rtol=0.05, atol=1e-4)


def test_generator_is_that_of_naive_attention():
    torch.manual_seed(0)
    generator, noise = Generator(FFHQ_256).cuda().eval(), torch.randn(2, 512, device="cuda")
    with torch.no_grad():
        images = generator(noise)
        with attending(unfused("naive")):
            torch.testing.assert_close(generator(noise), images, rtol=2e-2, atol=2e-2 * float(images.abs().max()))
