"""Generated parts of pages: headline and details from files of results, between their comments."""

import json
from dataclasses import replace

import pytest
import torch

from vicinal.bench import headline, pages
from vicinal.bench.cases import Case
from vicinal.bench.measure import Effort, Measurement, Timing
from vicinal.bench.record import Record
from vicinal.geometry.neighborhood import Neighborhood

CUDNN, FLEX = "SDPA cuDNN (self attention)", "FlexAttention"


def measurement(system, seconds, passed="forward", wide=1.1):
    timing = Timing(seconds, seconds * 0.9, seconds * wide, 5, 1)
    return Measurement(system, "neighborhood", passed, "ok", eager=timing, flops=10**9)


def record(device, date, *cases):
    """A run on a GPU of that name, or, with None, on this CPU; cases are (name, lengths, measurements)."""
    made = Record("vicinal bench --x", "gpu", torch.device("cpu"), Effort())
    made.document["date"] = date
    if device is not None:
        made.document["machine"]["device"] = device
    for name, lengths, measurements in cases:
        neighborhood = Neighborhood.of(len(lengths), 3).resolve(lengths)
        made.add(Case(name, lengths, neighborhood, heads=2, head_dim=8), measurements)
    made.finish()
    return made


IMAGE = ("2-D 9x9 window 3", (9, 9), [measurement("vicinal torch", 0.001), measurement(CUDNN, 0.004)])


@pytest.fixture
def checkout(tmp_path):
    """Pages with nothing between their comments, and a folder for results."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    for page, names in pages.PARTS.items():
        parts = "".join("{}\nold\n{}\n".format(*pages.comments(name)) for name in names)
        (tmp_path / page).write_text(f"before\n{parts}after\n")
    return tmp_path


def update(checkout, **records):
    for name, made in records.items():
        made.save(checkout / "results" / f"{name}.json")
    return pages.update(checkout / "results", checkout)


def test_pages_get_their_parts_and_charts(checkout):
    cpu = record(
        None, "2030-01-01", ("1-D 20 window 3", (20,), [measurement("vicinal torch", 1), measurement(FLEX, 3)])
    )
    changed = update(checkout, gpu=record("a GPU", "2030-01-02", IMAGE), cpu=cpu)
    text = (checkout / pages.PAGE).read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| 9x9 window 3 | 1 ms / – | 4.0 / – |" in text
    assert "a GPU, 2030-01-02" in text
    assert "### Lines on a CPU" in text
    assert "<summary><code>gpu.json</code>: a GPU, 2030-01-02, suite gpu, 1 problem</summary>" in text
    assert "`vicinal bench --x`" in text
    assert "geometric means of 1 problems: 3 over FlexAttention" in (checkout / pages.README).read_text()
    drawn = {path.name for path in changed if path.suffix == ".png"}
    assert drawn == {"gpu-images.png", "cpu-lines.png"}  # no problem here is one of README's
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in changed if path.suffix == ".png")
    assert all(path.suffix == ".png" for path in update(checkout)), "texts were up to date"


def test_the_newest_file_of_a_device_counts_and_ratios_stay_within_one():
    old = record("a GPU", "2030-01-01", (*IMAGE[:2], [*IMAGE[2], measurement(FLEX, 0.002)]))
    new = record("a GPU", "2030-01-02", (*IMAGE[:2], [measurement("vicinal torch", 0.002), measurement(CUDNN, 0.004)]))
    (found,) = headline.headlines([new.document, old.document])
    (row,) = found.rows
    assert row.ours["forward"].median == 0.002
    assert row.ratios["cuDNN self attention"]["forward"].value == pytest.approx(2)
    assert row.ratios["FlexAttention"]["forward"].value == pytest.approx(2)
    assert found.where().startswith("a GPU, 2030-01-01 to 2030-01-02")


def test_devices_are_kept_apart():
    first, second = (record(name, "2030-01-01", IMAGE) for name in ("a GPU", "another"))
    assert {h.device for h in headline.headlines([first.document, second.document])} == {"a GPU", "another"}


def test_every_gpu_has_its_table_the_one_with_most_peers_the_chart(checkout):
    more = (*IMAGE[:2], [*IMAGE[2], measurement(FLEX, 0.002)])
    update(checkout, one=record("a GPU", "2030-01-02", IMAGE), two=record("another", "2030-01-01", more))
    page, readme = ((checkout / name).read_text() for name in (pages.PAGE, pages.README))
    tables = page.partition("### Images on a GPU")[2].partition("<summary>")[0]
    assert tables.count("| 9x9 window 3 | 1 ms / – |") == 2
    assert tables.index("another, 2030-01-01") < tables.index(".png") < tables.index("a GPU, 2030-01-02")
    assert "On another GPU, geometric means of 1 problems: 4 over cuDNN self attention (a GPU, 2030-01-02" in readme


def test_figures_of_a_disturbed_machine_are_marked(checkout):
    disturbed = (*IMAGE[:2], [measurement("vicinal torch", 0.001), measurement(CUDNN, 0.004, wide=2)])
    update(checkout, gpu=record("a GPU", "2030-01-01", disturbed))
    text = (checkout / pages.PAGE).read_text()
    assert "| 4.0† / – |" in text
    assert "| 2-D 9x9 window 3 | 4.00† |" in text


def test_details_tell_our_share_of_cudnns_rate(checkout):
    everything = replace(measurement(CUDNN, 0.005), flops=10 * 10**9)
    update(checkout, gpu=record("a GPU", "2030-01-01", (*IMAGE[:2], [measurement("vicinal torch", 0.001), everything])))
    text = (checkout / pages.PAGE).read_text()
    assert "of SDPA cuDNN's FLOP/s" in text
    assert "| 50% |" in text


def test_interrupted_run_says_so_and_notes_are_shown(checkout):
    made = record("a GPU", "2030-01-01", IMAGE)
    made.document |= {"complete": False, "note": "a word on it"}
    update(checkout, gpu=made)
    text = (checkout / pages.PAGE).read_text()
    assert "interrupted" in text
    assert "a word on it" in text


def test_page_without_comments_is_an_error(checkout):
    (checkout / pages.PAGE).write_text("nothing here")
    with pytest.raises(ValueError, match="between"):
        update(checkout)


def test_broken_result_is_an_error(checkout):
    (checkout / "results" / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        update(checkout)


def test_rivals_are_shown_with_the_gpu(checkout):
    rivals = {"where": "By hand", "columns": ["other"], "rows": {"image": ["1 / 2"]}, "notes": ["a remark"]}
    (checkout / "results" / pages.RIVALS).write_text(json.dumps(rivals))
    update(checkout, gpu=record("a GPU", "2030-01-01", IMAGE))
    text = (checkout / pages.PAGE).read_text()
    assert "| image | 1 / 2 |" in text
    assert "- a remark" in text
