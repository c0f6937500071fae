"""What autocast makes of tensors, and where it must not reach."""

import pytest
import torch

from vicinal.autocast import autocast, autocast_dtype, without_autocast


def test_it_has_its_dtype_on_devices_that_know_it():
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(torch.device("cpu")) == torch.bfloat16
        assert autocast_dtype(torch.device("cuda")) is None
        assert autocast_dtype(torch.device("meta")) is None
    assert autocast_dtype(torch.device("cpu")) is None


def test_it_leaves_float64_and_what_is_no_tensor():
    x, wide = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    with torch.autocast("cpu", torch.float16):
        cast = autocast((x, wide, None, 3))
    assert [getattr(t, "dtype", t) for t in cast] == [torch.float16, torch.float64, None, 3]
    assert autocast((x, wide, None)) == (x, wide, None)


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("meta", torch.bfloat16)])
def test_products_keep_their_precision_where_it_is_shut_out(device, dtype):
    x = torch.zeros(2, 2)
    with torch.autocast("cpu", torch.bfloat16), without_autocast(torch.device(device)):  # meta has none to shut out
        assert (x @ x).dtype == dtype
