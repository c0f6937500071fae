"""The peer that cannot run here: its plans' intervals, and the order of its tokens."""

import pytest
import torch

from vicinal.bench import cudnn_flex, peers
from vicinal.bench.cases import Case
from vicinal.bench.measure import Effort, measure
from vicinal.cli import main
from vicinal.geometry.neighborhood import Neighborhood
from vicinal.reference import neighborhood_mask


@pytest.mark.parametrize("ordered", [False, True], ids=["raster", "tiled"])
def test_intervals_are_the_keys_that_the_oracle_attends_to(case, ordered):
    problem = case.problem("cpu")
    mask = neighborhood_mask(problem.neighborhood, problem.lengths)
    tokens = len(mask)
    order = cudnn_flex.tile_order(problem) if ordered else torch.arange(tokens)
    assert sorted(order.tolist()) == list(range(tokens))
    (rows,) = cudnn_flex.key_intervals(problem, order)
    assert rows.dtype == torch.int32
    assert rows.is_contiguous()
    assert len(rows) % 2 == 1
    assert (rows.diff(dim=0) >= 0).all()  # what the plan demands: in order, not overlapping,
    assert (rows[0] == 0).all()
    assert (rows <= tokens).all()
    places = torch.arange(tokens)
    found = sum((places >= start[:, None]) & (places < stop[:, None]) for start, stop in zip(rows[1::2], rows[2::2]))
    assert torch.equal(found.bool(), mask[order][:, order])
    assert found.max() == 1


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([32768], (128,)),
        ([256, 256], (8, 16)),
        ([30, 48, 80], (2, 8, 8)),
        ([24, 44, 80], (4, 4, 8)),
        ([3, 300], (1, 128)),
    ],
    ids=str,
)
def test_tiles_fill_the_map_and_are_near_cubes(lengths, shape):
    assert cudnn_flex.tile_shape(lengths) == shape


def test_windows_in_raster_order_are_an_interval_per_row():
    problem = Case("", (32, 32), Neighborhood.of(2, 17), heads=1, head_dim=8).problem("cpu")
    order = cudnn_flex.tile_order(problem)
    assert order[:16].tolist() == list(range(16))
    assert order[16] == 32
    assert cudnn_flex.key_intervals(problem, torch.arange(1024)).shape == (1, 2 * 17 + 1, 1024)


class Plans:
    """What stands for `cudnn.flex_attention`: attends by the intervals alone."""

    @staticmethod
    def create_mask_plan(rows, query, key, value, *, build_backward):
        assert query.shape[:2] == (2, rows.shape[-1] // 2)
        assert build_backward
        return rows

    @staticmethod
    def flex_attn_func(query, key, value, *, mask_plan, softmax_scale):
        rows, places = mask_plan[0, :, : query.shape[1]], torch.arange(key.shape[1])
        mask = sum((places >= a[:, None]) & (places < b[:, None]) for a, b in zip(rows[1::2], rows[2::2])).bool()
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        output = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=softmax_scale, enable_gqa=True)
        return output.transpose(1, 2)


@pytest.mark.parametrize("index", range(3))
def test_systems_give_what_the_case_asks_for(case, index, monkeypatch):
    import sys
    from types import SimpleNamespace

    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace(flex_attention=Plans))
    monkeypatch.setattr(cudnn_flex, "unsupported", lambda problem: None)
    system = peers._cudnn_flex()[index]
    results = measure(case, [system], "cpu", Effort(samples=3, seconds=0.01, sample_seconds=0.0))
    assert {m.status for m in results} == {"ok"}, [m.reason for m in results]


def test_it_is_a_peer_where_it_is_installed(monkeypatch, capsys):
    assert not any("cudnn-flex" in peer.name for peer in peers.peers("cuda"))
    monkeypatch.setattr(cudnn_flex, "installed", lambda: True)
    assert sum("cudnn-flex" in peer.name for peer in peers.peers("cuda")) == 3


def test_without_it_what_to_install_is_said(capsys):
    options = ["--lengths", "8x8", "--window", "3", "--device", "cpu", "--peer", "cudnn-flex"]
    assert main(["bench", *options]) == 2
    assert "that needs nvidia-cudnn-frontend[cutedsl]" in capsys.readouterr().err
