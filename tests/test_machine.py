import torch

from vicinal.machine import machine, versions


def test_versions_name_what_results_depend_on():
    found = versions()
    assert found["torch"] == torch.__version__
    assert {"vicinal", "python", "triton"} <= found.keys()


def test_the_machine_has_a_name_and_cores():
    found = machine(torch.device("cpu"))
    assert found["device"] == found["cpu"] != ""
    assert found["cores"] >= 1
