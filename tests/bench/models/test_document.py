"""The page of the tables of models."""

import json

import pytest

from vicinal.bench.models.document import document, files, measured
from vicinal.bench.models.plots import draw
from vicinal.bench.models.run import KIND
from vicinal.cli import main

HEADER = {
    "kind": KIND,
    "date": "2026-01-01T00:00:00+00:00",
    "command": "vicinal bench models",
    "machine": {"device": "Some GPU", "threads": 2, "load": 0.5},
    "versions": {"vicinal": "0"},
}


def line(model, dtype="float16", passed="inference", batch=128, **rates):
    systems = {
        name: {
            "status": "ok",
            "images_per_second": rate,
            "seconds": {"median": batch / rate, "lower": batch / rate, "upper": batch / rate},
            "attention_share": 0.15,
            "peak_bytes": 10**9,
            "kernel_seconds": batch / rate,
        }
        for name, rate in rates.items()
    }
    key = {"model": model, "dtype": dtype, "batch": batch, "pass": passed, "side": None}
    return {"kind": "model", "device": "Some GPU", **key, "systems": systems}


@pytest.fixture
def folder(tmp_path):
    lines = [
        HEADER,
        line("nat_tiny", fused=3000.0, naive=1500.0, gemm=2000.0, none=3500.0),
        line("nat_tiny", fused=2000.0, FlexAttention=1000.0),
        line("dinat_base", dtype="float16", passed="training", fused=400.0, naive=390.0),
        line("stylenat_ffhq_256", dtype="float32", batch=64, fused=60.0, naive=40.0),
        line("nat_mini", dtype="float32", batch=1, fused=12.0, torch=4.0),
    ]
    (tmp_path / "models.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (tmp_path / "other.jsonl").write_text('{"kind": "else"}\n')
    return tmp_path


def test_ratios_are_of_one_line(folder):
    (first, *_) = measured(files(folder))
    assert (first.rate("fused"), first.ratio("naive"), first.ratio("FlexAttention")) == (2000.0, 2.0, 2.0)
    assert first.ratio("gemm") == 1.5
    assert first.ratio("magic") is None


def test_the_page_has_the_papers_figures_beside_ours_and_what_was_aimed_at(folder):
    text = document(folder)
    assert "| NAT-T | 128 | 1,500 | 2,000 | 2,000 | +100 (+28) | +50 (+43) |" in text
    assert "2167, 1939, 2772 |" in text
    assert "| FFHQ-256 | 64 | 40 |" in text
    assert "| fused over naive, float16: at least the paper's gain on every row | 1 of 1 | yes |" in text
    assert "| fused over naive, training with bias: at least the paper's gain on every row | 0 of 1 | **no** |" in text
    assert "| share of attention, NAT-T, float16: at most 20 % | 15 % | yes |" in text
    assert "### Other rows" in text
    assert "| nat_mini | float32 | 1 | inference | own | 12 | 4 | 15 | 3.00 |" in text
    assert f"{300 * 1_281_167 / 400 / 3600:.0f}" in text


def test_shares_are_of_kernels(folder):
    first, *_ = measured(files(folder))
    assert first.share() == 0.15
    del first.results["fused"][0]["kernel_seconds"]  # as in results of earlier versions
    assert first.share() is None
    del first.results["fused"][0]["peak_bytes"]  # of a CPU
    assert first.share() == 0.15


def test_rates_that_are_the_hosts_have_a_star(tmp_path):
    one = line("nat_tiny", fused=2000.0, naive=1000.0)
    for result, kernels in zip(one["systems"].values(), (0.03, 0.127)):
        taken = 128 / result["images_per_second"]
        result |= {"seconds": {"median": taken, "lower": 0.9 * taken, "upper": 1.1 * taken}, "kernel_seconds": kernels}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (HEADER, one)))
    assert r"| NAT-T | 128 | 1,000 |  | 2,000\* | +100 (+28) |  (+43) |" in document(tmp_path)
    for result in one["systems"].values():  # earlier results have no times of kernels: calls that differ tell
        del result["kernel_seconds"]
    one["systems"]["naive"]["seconds"]["lower"] = one["systems"]["naive"]["seconds"]["median"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (HEADER, one)))
    assert r"| NAT-T | 128 | 1,000 |  | 2,000\* |" in document(tmp_path)


def test_rates_are_of_replays_where_there_are_any(tmp_path):
    one = line("nat_tiny", fused=2000.0, naive=1000.0, gemm=1600.0)
    for name, rate in (("fused", 4000.0), ("naive", 1280.0)):
        one["systems"][name] |= {"replays": {"median": 128 / rate}, "kernel_seconds": 0.03}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (HEADER, one)))
    (row,) = measured(files(tmp_path))
    assert (row.rate("fused"), row.ratio("naive")) == (4000.0, 3.125)
    assert row.ratio("gemm") == 1.25  # which has none: single calls beside single calls
    assert r"| 1,280 | 1,600 | 4,000 | +212 (+28) | +25 (+43) | 1,000\*; 1,600; 2,000\* |" in document(tmp_path)


def test_the_command_writes_the_page_and_pictures(folder, capsys):
    page, plots = folder / "page.md", folder / "pictures"
    options = ["--results", str(folder), "--page", str(page), "--plots", str(plots)]
    assert main(["bench", "models-report", *options]) == 0
    names = sorted(path.name for path in plots.iterdir())
    assert names == ["table5-some-gpu.png", "table7-some-gpu.png", "table8-some-gpu.png"]
    assert "](pictures/table5-some-gpu.png)" in page.read_text()


def test_no_results_is_an_error(tmp_path, capsys):
    assert main(["bench", "models-report", "--results", str(tmp_path), "--page", str(tmp_path / "page.md")]) == 2
    assert "no results of `vicinal bench models`" in capsys.readouterr().err
    assert draw([], tmp_path) == []
