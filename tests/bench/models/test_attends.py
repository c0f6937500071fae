"""All that may compute a model's attention computes the same."""

import pytest
import torch

import vicinal
from vicinal.bench.models import attends
from vicinal.bench.models.rows import Row
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.models.stylenat import SplitHeads

CPU = torch.device("cpu")
ATTEND = {n: s.make for n, s in attends.systems(CPU).items() if s.checked and not s.compiled and not s.channels_last}
ATTEND["FlexAttention"] = attends.Flex


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", ATTEND)
def test_systems_compute_the_same_model(small, name):
    torch.manual_seed(0)
    model, images = small(Row("nat_mini", torch.float32, 2), CPU)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    with torch.no_grad():
        expected = model(images)
        with attends.attending(ATTEND[name]()):
            torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert vicinal.nn.neighborhood_attention is vicinal.neighborhood_attention


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", ATTEND)
def test_systems_know_heads_with_windows_of_their_own(name):
    torch.manual_seed(0)
    module, x = SplitHeads(16, 4, 3, (1, 2)).eval(), torch.randn(1, 7, 8, 16)
    attend = ATTEND[name]()
    with torch.no_grad():
        for _ in range(2):  # weights that differ between calls are not those of the call before
            module.rpb0.normal_()
            expected = module(x)
            with attends.attending(attend):
                torch.testing.assert_close(module(x), expected)


def test_dense_masks_that_would_not_fit_are_refused():
    q = torch.zeros(1, 256, 256, 2, 8)
    with pytest.raises(ValueError, match="dense mask would take 32 GiB"):
        attends.MaskedSDPA()(q, q, q, [Neighborhood.of(2, 3)], scale=1.0, rpb=torch.zeros(2, 5, 5))
