import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from vicinal.bench import report
from vicinal.bench.cases import Case
from vicinal.bench.measure import Effort, Measurement, Timing
from vicinal.bench.record import Record, measurements_of, problem_of
from vicinal.bench.roofline import Limits
from vicinal.geometry.neighborhood import Neighborhood


def timing(seconds):
    return Timing(seconds, seconds * 0.9, seconds * 1.1, 5, 1)


def measurement(system, seconds, passed="forward", kernel=None, **options):
    return Measurement(
        system,
        "neighborhood",
        passed,
        "ok",
        eager=timing(seconds),
        kernel=kernel and timing(kernel),
        flops=10**9,
        **options,
    )


@pytest.fixture
def record(small_case):
    """Two cases: a peer takes 2 and 8 times our time; another has a result on neither or on one."""
    from dataclasses import replace

    made = Record("vicinal bench", "cpu", torch.device("cpu"), Effort())
    made.add_limits(torch.float32, Limits(1e10, 1e12))
    failed = Measurement("other", "neighborhood", "forward", "failed", "it broke")
    made.add(small_case, [measurement("vicinal torch", 0.001), measurement("peer", 0.002), failed])
    second = replace(small_case, name="second")
    made.add(second, [measurement("vicinal torch", 0.001), measurement("peer", 0.008), measurement("other", 0.0005)])
    made.finish()
    return made


def test_summary_is_geometric_mean_and_worst(record):
    other, peer = report.summarize(record.document)
    assert (peer.peer, peer.count, peer.worst_case) == ("peer", 2, "small")
    assert peer.mean == pytest.approx(4)
    assert peer.worst == pytest.approx(2)
    assert (other.peer, other.count) == ("other", 1)
    assert other.mean == pytest.approx(0.5)


def test_ratio_is_of_kernel_times_where_both_have_one():
    ours = measurement("vicinal triton", 0.010, kernel=0.001)
    assert report.ratio(ours, measurement("peer", 0.020, kernel=0.004)) == pytest.approx(4)
    assert report.ratio(ours, measurement("peer", 0.020)) == pytest.approx(2)
    assert report.ratio(ours, Measurement("peer", "neighborhood", "forward", "failed", "why")) is None


def test_share_of_rate_counts_each_systems_own_flops():
    from dataclasses import replace

    ours = measurement("vicinal triton", 0.010)
    everything = replace(measurement("SDPA cuDNN (self attention)", 0.050), flops=10 * 10**9)
    assert report.share_of_rate(ours, everything) == pytest.approx(5 / 10)


def test_our_result_is_the_first_of_ours_that_has_one():
    broken = Measurement("vicinal hopper", "neighborhood", "forward", "failed", "why")
    second = measurement("vicinal triton", 0.1)
    assert report.our_result({}, [measurement("peer", 0.1), broken, second], "forward") is second
    assert report.our_result({}, [broken], "forward") is None
    assert report.our_result({}, [second], "backward") is None


@pytest.mark.parametrize(("window", "chosen"), [(7, "vicinal triton"), (80, "vicinal hopper")])
def test_our_result_is_of_the_backend_that_dispatch_would_choose(window, chosen):
    neighborhood = Neighborhood.of(2, window).resolve((128, 128))
    case = Case("", (128, 128), neighborhood, 4, 32 if window == 7 else 128, 8, dtype=torch.bfloat16)
    record = Record("", None, torch.device("cpu"), Effort())
    both = [measurement("vicinal hopper", 0.1), measurement("vicinal triton", 0.1)]
    record.add(case, both)
    written = record.document["cases"][0]
    assert report.our_result(written, measurements_of(written), "forward").system == chosen


def test_a_backend_that_is_no_more_is_a_peer_of_the_others():
    gone, numba = measurement("vicinal abacus", 0.1), measurement("vicinal numba", 0.2)
    assert report.our_result({}, [gone, numba], "forward") is numba
    assert report.our_result({}, [gone], "forward") is gone


@pytest.mark.parametrize("width", [60, 200])
def test_tables_fit_the_terminal_and_cut_no_name(record, width):
    console = Console(width=width, markup=False, highlight=False, file=io.StringIO())
    report.print_case(console, record.document["cases"][1])
    report.print_summary(console, record.document)
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    assert ("quartiles" in printed) == ("worst on" in printed) == (width == 200)


def test_the_problem_of_a_case_is_read_back(record):
    for written in record.document["cases"]:
        problem = problem_of(written)
        assert problem.useful_scores == written["useful_scores"]
        assert problem.dtype == torch.float32


def test_file_holds_what_was_measured(record, tmp_path):
    path = tmp_path / "run.json"
    record.save(path)
    document = json.loads(path.read_text())
    assert document == record.document
    assert list(tmp_path.iterdir()) == [path]
    first = measurements_of(document["cases"][0])[0]
    assert first == measurement("vicinal torch", 0.001)
    assert document["cases"][0]["window"] == [3, 3]


def test_terminal_shows_times_ratios_and_reasons(record):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    report.print_case(console, record.document["cases"][0])
    report.print_summary(console, record.document)
    text = console.export_text()
    assert "2 ms (1.8 - 2.2)" in text
    assert "2.00" in text
    assert "other: failed, it broke (forward)" in text
    assert "4.00" in text


def test_plot_is_an_image(record, tmp_path):
    path = tmp_path / "plot.png"
    report.plot(record.document, path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("wide", [False, True])
def test_terminal_marks_a_time_whose_quartiles_are_wide(record, wide):
    console = Console(width=120, file=io.StringIO(), markup=False, highlight=False)
    case = dict(record.document["cases"][0])
    if wide:
        case["measurements"] = [m | {"eager": m["eager"] and m["eager"] | {"upper": 1.0}} for m in case["measurements"]]
    report.print_case(console, case)
    assert ("the machine was disturbed" in console.file.getvalue()) == wide


def test_a_time_whose_quartiles_are_wide_is_not_steady():
    assert not replace(timing(1.0), upper=1.3).steady
    assert timing(1.0).steady
