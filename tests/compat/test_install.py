"""`import natten` after one line, for every generation."""

import importlib.metadata
import importlib.util
import sys
import warnings

import pytest
import torch

from vicinal.compat import GENERATIONS, context, install_as_natten, uninstall_natten


@pytest.fixture(autouse=True)
def no_trace():
    uninstall_natten()
    context.reset()
    yield
    uninstall_natten()
    context.reset()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_imports_resolve(generation):
    module = install_as_natten(generation)
    import natten
    import natten.flops
    import natten.functional

    assert natten is module
    assert natten.__version__.startswith(generation)
    assert importlib.metadata.version("natten") == natten.__version__
    assert importlib.util.find_spec("natten") is not None
    layer = natten.NeighborhoodAttention2D(16, num_heads=2, kernel_size=3)
    assert layer(torch.randn(1, 4, 5, 16)).shape == (1, 4, 5, 16)


def test_the_old_names_are_there_and_the_new_are_not():
    install_as_natten("0.17.1")
    import natten
    from natten.context import use_fused_na as from_context
    from natten.functional import na2d_qk, na3d_av, natten2dqkrpb  # noqa: F401
    from natten.na2d import NeighborhoodAttention2D
    from natten.types import CausalArg2DTypeOrDed  # noqa: F401
    from natten.utils import check_all_args

    assert check_all_args(2, 7, (1, 2), None) == ((7, 7), (1, 2), (False, False))
    assert natten.use_fused_na is from_context
    assert natten.NeighborhoodAttention2D is NeighborhoodAttention2D
    assert not hasattr(natten, "attention")
    assert natten.__version__ == "0.17.1"


def test_the_default_generation_has_functions_where_the_old_had_modules():
    install_as_natten()
    import natten
    from natten.functional import na2d

    assert natten.na2d is na2d
    assert callable(natten.na2d)


def test_another_generation_replaces_the_first():
    install_as_natten("0.14")
    assert "natten.natten2d" in sys.modules
    install_as_natten("0.20")
    assert "natten.natten2d" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        import natten.natten2d  # noqa: F401


def test_uninstall_leaves_nothing():
    install_as_natten("0.17")
    uninstall_natten()
    assert not [name for name in sys.modules if name.split(".")[0] == "natten"]
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("natten")


def test_unknown_generation_is_refused():
    with pytest.raises(ValueError, match="generation must be one of"):
        install_as_natten("0.13")


def test_a_real_natten_is_not_replaced(monkeypatch):
    monkeypatch.setitem(sys.modules, "natten", type(sys)("natten"))
    with pytest.raises(RuntimeError, match="already imported"):
        install_as_natten("0.17")


def test_what_has_no_effect_is_said_once():
    install_as_natten("0.17")
    import natten

    with pytest.warns(UserWarning, match="use_autotuner has no effect"):
        natten.use_autotuner(forward_pass=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        natten.use_autotuner(forward_pass=True)
    assert natten.is_autotuner_enabled() is False


def test_settings_are_remembered():
    install_as_natten("0.17")
    import natten

    assert not natten.is_fused_na_enabled()
    natten.use_fused_na()
    assert natten.is_fused_na_enabled()
    with pytest.warns(UserWarning, match="no effect"):
        natten.set_memory_usage_preference("strict")
    assert natten.is_memory_usage_strict()
    with pytest.raises(ValueError, match="pref must be one of"):
        natten.set_memory_usage_preference("some")


def test_natten_backend_names_are_understood():
    install_as_natten("0.21")
    import natten

    x = torch.randn(1, 6, 2, 8)
    with pytest.warns(UserWarning, match="no backend 'cutlass-fna'"):
        out = natten.na1d(x, x, x, 3, backend="cutlass-fna")
    torch.testing.assert_close(out, natten.na1d(x, x, x, 3))
