import pytest

from vicinal.bench.cases import Case
from vicinal.geometry.neighborhood import Neighborhood

FEATURES = {
    "1-D": ((150,), dict(kernel_size=9)),
    "1-D causal": ((150,), dict(kernel_size=9, is_causal=True)),
    "2-D": ((9, 12), dict(kernel_size=(3, 5))),
    "2-D dilated": ((9, 14), dict(kernel_size=3, dilation=(2, 3))),
    "2-D strided": ((9, 12), dict(kernel_size=4, stride=(3, 2))),
    "2-D strided and clipped": ((9, 12), dict(kernel_size=4, stride=4, boundary="clip")),
    "3-D mixed": ((4, 5, 9), dict(kernel_size=(2, 3, 4), dilation=(1, 1, 2), is_causal=(True, False, False))),
}


@pytest.fixture(params=FEATURES)
def case(request):
    """Small cases with every feature, two query heads for each key head."""
    lengths, options = FEATURES[request.param]
    neighborhood = Neighborhood.of(len(lengths), **options).resolve(lengths)
    return Case(request.param, lengths, neighborhood, heads=4, head_dim=8, batch=2, kv_heads=2, value_dim=6)


@pytest.fixture
def small_case():
    neighborhood = Neighborhood.of(2, 3).resolve((5, 6))
    return Case("small", (5, 6), neighborhood, heads=2, head_dim=8)
