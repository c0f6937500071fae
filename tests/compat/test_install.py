"""`import natten` after one line, for every generation."""

import importlib.metadata
import importlib.util
import runpy
import sys
import warnings

import pytest
import torch

from vicinal.compat import GENERATIONS, install_as_natten, uninstall_natten


@pytest.mark.parametrize("generation", GENERATIONS)
def test_imports_resolve(generation):
    module = install_as_natten(generation)
    import natten
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
    with pytest.raises(ValueError, match="generation must be one of 0.14"):
        install_as_natten("0.13")
    with pytest.raises(ValueError, match="known here are 0.21.0 to 0.21.7, got '0.21.9'"):
        install_as_natten("0.21.9")


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


SETTINGS = [
    ("0.17", "use_fused_na()", "is_fused_na_enabled", True),
    ("0.17", "use_fused_na()", "is_kv_parallelism_in_fused_na_enabled", True),
    ("0.17", "use_fna(True, False)", "is_kv_parallelism_in_fused_na_enabled", False),
    ("0.17", "use_flex_attention()", "context.should_use_flex_attention", True),
    ("0.17", "use_flex_attention()", "is_fna_enabled", True),
    ("0.17", "force_flex_attention()", "context.should_force_flex_attention", True),
    ("0.17", "use_autotuner(True, False)", "is_autotuner_enabled", True),
    ("0.17", "use_autotuner(True, False)", "is_autotuner_enabled_for_forward", True),
    ("0.17", "use_autotuner(True, False)", "is_autotuner_enabled_for_backward", False),
    ("0.17", "use_autotuner(True, True, False, True)", "is_autotuner_thorough_for_backward", True),
    ("0.17", "disable_autotuner()", "is_autotuner_enabled", False),
    ("0.17", "use_tiled_na(False)", "is_tiled_na_enabled", False),
    ("0.17", "disable_gemm_na()", "is_gemm_na_enabled", False),
    ("0.17", "use_deterministic_algorithms()", "are_deterministic_algorithms_enabled", True),
    ("0.21", "use_kv_parallelism_in_fused_na(False)", "is_kv_parallelism_in_fused_na_enabled", False),
    ("0.21", "allow_flex_compile()", "is_flex_compile_allowed", True),
    ("0.21", "allow_flex_compile(True, True)", "is_flex_compile_backprop_allowed", True),
    ("0.21", "disable_flex_compile()", "is_flex_compile_allowed", False),
    ("0.21", "set_memory_usage_preference('unrestricted')", "is_memory_usage_unrestricted", True),
]


@pytest.mark.filterwarnings("ignore:natten")
@pytest.mark.parametrize(("version", "call", "question", "answer"), SETTINGS)
def test_every_setting_is_read_back(version, call, question, answer):
    natten = install_as_natten(version)
    eval(f"natten.{call}", {"natten": natten})
    assert eval(f"natten.{question}()", {"natten": natten}) is answer


@pytest.mark.parametrize("backend", ["cutlass-fna", "hopper-fna", "blackwell-fna", "flex-fna", "reference"])
def test_natten_backend_names_are_understood(backend):
    install_as_natten("0.21")
    import natten

    x = torch.randn(1, 6, 2, 8)
    with pytest.warns(UserWarning, match=f"no backend '{backend}'"):
        out = natten.na1d(x, x, x, 3, backend=backend)
    assert torch.equal(out, natten.na1d(x, x, x, 3))


@pytest.mark.parametrize("backend", ["cutlass-fmha", "flex-fmha"])
def test_backends_of_attention_are_understood(backend):
    natten = install_as_natten("0.21.1")
    x = torch.randn(1, 6, 2, 8)
    with pytest.warns(UserWarning, match=f"no backend '{backend}'"):
        out = natten.attention(x, x, x, backend=backend)
    torch.testing.assert_close(out, natten.attention(x, x, x))


@pytest.mark.parametrize("version", ["0.20.0", "0.21.7"])
def test_compatible_backends_are_ones_that_run(version):
    natten = install_as_natten(version)
    x = torch.randn(1, 6, 5, 2, 8)
    tensors = (x,) if version == "0.20.0" else (x, x, x)
    names = natten.backends.get_compatible_backends(*tensors, torch_compile=False)
    assert natten.backends.choose_backend(*tensors, False) == names[0]
    outputs = [natten.na2d(x, x, x, 3, backend=name) for name in names]
    torch.testing.assert_close(outputs, [outputs[0]] * len(names))
    assert natten.get_configs_for_cutlass_fna(*tensors) == []


KNOBS = [
    ("0.17", "use_autotuner(True)", "use_autotuner has no effect"),
    ("0.17", "functional.na1d(x, x, x, 3, xformers_kwargs={'a': 1})", "ignores xformers_kwargs"),
    ("0.17", "use_flex_attention()", "use_flex_attention has no effect"),
    ("0.21", "na1d(x, x, x, 3, backend='flex-fna')", "no backend 'flex-fna'"),
    ("0.21", "na1d(x, x, x, 3, q_tile_shape=(64,))", "ignores q_tile_shape"),
    ("0.20", "na1d(x, x, x, 3, try_fuse_additional_kv=True)", "ignores try_fuse_additional_kv"),
    ("0.21", "set_memory_usage_preference('strict')", "set_memory_usage_preference has no effect"),
]


@pytest.mark.parametrize(("version", "call", "message"), KNOBS)
def test_warnings_point_at_the_caller_s_line(version, call, message, tmp_path, monkeypatch):
    monkeypatch.setattr("vicinal.calls._warned", set())
    script = tmp_path / "script.py"
    script.write_text(f"import natten, torch\n\nx = torch.randn(1, 6, 2, 8)\nnatten.{call}\n")
    install_as_natten(version)
    with pytest.warns(UserWarning, match=message) as caught:
        runpy.run_path(str(script))
    assert (caught[0].filename, caught[0].lineno) == (str(script), 4)
