import io
import json

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


def test_page_tells_our_share_of_cudnns_rate(small_case):
    made = Record("vicinal bench", "gpu", torch.device("cpu"), Effort())
    made.add(small_case, [measurement("vicinal torch", 0.002), measurement("SDPA cuDNN (self attention)", 0.001)])
    made.finish()
    head, _, row = report.markdown(made.document, "x.json").splitlines()[-3:]
    assert "of SDPA cuDNN's FLOP/s" in head
    assert "| 50% |" in row


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


def test_page_gets_tables_between_its_markers(record, tmp_path):
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    record.save(results / "a.json")
    (results / "b.json").write_text('{"kind": "something else"}')
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert report.update_document(results, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| forward | peer | 4.00 | 2.00 | small | 2 |" in text
    assert "| small | 1 ms |" in text
    assert "failed" in text
    assert "`vicinal bench`" in text
    assert not report.update_document(results, page)


def test_interrupted_run_says_so(record):
    record.document["complete"] = False
    assert "interrupted" in report.markdown(record.document, "a.json")


def test_page_without_markers_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    with pytest.raises(ValueError, match="between"):
        report.update_document(tmp_path, page)


def test_broken_result_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{report.BEGIN}{report.END}")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        report.update_document(tmp_path, page)


def test_plot_is_an_image(record, tmp_path):
    path = tmp_path / "plot.png"
    report.plot(record.document, path)
    assert path.read_bytes().startswith(b"\x89PNG")
