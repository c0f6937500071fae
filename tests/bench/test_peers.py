import pytest
import torch

from vicinal import dispatch
from vicinal.bench import peers as module
from vicinal.bench import runner
from vicinal.bench.cases import Case, random_inputs
from vicinal.bench.measure import Effort, measure
from vicinal.bench.peers import peers, vicinal_system, vicinal_systems
from vicinal.geometry.neighborhood import Neighborhood

QUICK = Effort(samples=3, seconds=0.01, sample_seconds=0.0)


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention without its compiler: the same result, without half a minute."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.parametrize("index", range(3), ids=[p.name for p in peers("cpu")])
def test_cpu_peer_computes_what_it_says(case, index, uncompiled):
    system = peers("cpu")[index]
    by_pass = {m.passed: m for m in measure(case, [system], "cpu", QUICK)}
    assert by_pass["forward"].status == "ok", by_pass["forward"].reason
    assert by_pass["backward"].status == ("skipped" if system.name == "FlexAttention" else "ok")
    assert by_pass["forward"].computes == ("self attention" if "self" in system.name else "neighborhood")


@pytest.mark.parametrize(("index", "name"), [(0, "vicinal numba"), (1, "vicinal torch")])
def test_our_backends_are_timed_with_their_tilings(small_case, index, name):
    systems = vicinal_systems(small_case.problem("cpu"))
    assert len(systems) == 2
    system = systems[index]
    assert system.name == name
    results = measure(small_case, [system], "cpu", QUICK)
    assert [m.status for m in results] == ["ok"] * 3, [m.reason for m in results]
    assert all("queries" in m.note for m in results)


def test_backend_that_cannot_run_gives_its_reason(small_case):
    (result, *_) = measure(small_case, [vicinal_system("hopper")], "cpu", QUICK)
    assert result.status == "skipped"
    assert result.reason == dispatch.unsupported("hopper", small_case.problem("cpu"))


def test_masks_that_would_not_fit_are_refused():
    (masked,) = (p for p in peers("cpu") if p.name == "SDPA with a mask")
    problem = Case("", (256, 256), Neighborhood.of(2, 7), 1, 8).problem("cpu")
    assert "20 GiB" in (masked.unsupported(problem) or "")
    assert masked.unsupported(Case("", (64, 64), Neighborhood.of(2, 7), 1, 8).problem("cpu")) is None


def test_named_peers_only(small_case):
    run = runner.Run([small_case], torch.device("cpu"), QUICK, "", backends=("torch",), peers=("mask", "Flex"))
    names = [s.name for s in runner.systems(run, small_case)]
    assert names == ["vicinal torch", "SDPA with a mask", "FlexAttention"]


def test_cuda_has_every_sdpa_backend():
    names = [p.name for p in peers("cuda")]
    assert names == [
        "SDPA flash (self attention)",
        "SDPA efficient (self attention)",
        "SDPA cuDNN (self attention)",
        "SDPA with a mask",
        "FlexAttention",
    ]


def test_self_attention_inputs_are_scaled_alike(small_case):
    problem = small_case.problem("cpu")
    (system,) = (p for p in peers("cpu") if p.name == "SDPA (self attention)")
    q = random_inputs(problem).query.flatten(1, 2).transpose(1, 2)
    expected = torch.softmax(problem.scale * q @ q.transpose(-1, -2), -1) @ q
    torch.testing.assert_close(system.prepare(problem)(q, q, q), expected)
    assert module.MASK_BYTES_LIMIT == 4 << 30
