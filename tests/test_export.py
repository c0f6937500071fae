"""Export as plain operations, and with lengths that vary."""

import pytest
import torch

import vicinal
from vicinal.export import attend_plainly, decompositions
from vicinal.geometry.neighborhood import Neighborhood, encode
from vicinal.geometry.span import Span
from vicinal.operators import attend

of = Neighborhood.of
CASES = {
    "plane, all extras": ([of(2, (3, 4), dilation=(2, 1), stride=(1, 2))], (7, 9), (7, 9), True),
    "line, per head": ([of(1, 9, is_causal=True), of(1, 5, dilation=2, boundary="clip")] * 2, (11,), (11,), False),
    "clips": ([of(3, 2)], (3, 4, 2), (3, 4, 2), True),
    "parts": ([of(2, 3).over([Span(12, (3, 8), (0, 12)), Span(9, (2, 9), (1, 9))])], (5, 7), (12, 8), False),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_plain_operations_are_the_operator(case, masked):
    neighborhoods, queries, keys, extras = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k, v = randn(2, *queries, 4, 8), randn(2, *keys, 2, 8), randn(2, *keys, 2, 5)
    more = [None] * 3
    if extras:
        more = [randn(2, 3, 2, 8), randn(2, 3, 2, 5), randn(4, *(2 * w - 1 for w in neighborhoods[0].window))]
    mask = randn(2, *keys) > 0 if masked else None
    arguments = (q, k, v, *more, mask, None, encode(neighborhoods), 0.3, "torch")
    torch.testing.assert_close(attend_plainly(*arguments), attend(*arguments))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = vicinal.NeighborhoodAttention2D(16, 2, 5, dilation=(1, 2), rpb=True)
        self.second = vicinal.NeighborhoodAttention2D(16, 2, 3, stride=2)

    def forward(self, x):
        return self.second(self.first(x).relu())


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    model = Model().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(2, 8, 11, 16),), dynamic_shapes=({0: batch},))
    return model, program.run_decompositions(decompositions())


@pytest.mark.parametrize("batch", [1, 5])
def test_no_operator_of_ours_is_left_and_any_batch_runs(exported, batch):
    model, program = exported
    assert not [node for node in program.graph.nodes if "vicinal" in str(node.target)]
    x = torch.randn(batch, 8, 11, 16)
    torch.testing.assert_close(program.module()(x), model(x))


def test_onnx_runs_any_batch(exported, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, program = exported
    torch.onnx.export(program, dynamo=True).save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 5):
        x = torch.randn(batch, 8, 11, 16)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x))


class Masked(torch.nn.Module):
    def forward(self, x, mask):
        return vicinal.na2d(x, x, x, 5, key_mask=mask, clamp=False)


def test_lengths_may_be_dynamic():
    height, width = torch.export.Dim("height", min=5, max=64), torch.export.Dim("width", min=5, max=64)
    example = torch.randn(2, 9, 12, 2, 8), torch.ones(2, 9, 12, dtype=torch.bool)
    program = torch.export.export(Masked(), example, dynamic_shapes=({1: height, 2: width}, {1: height, 2: width}))
    for lengths in ((5, 40), (16, 16)):
        x, mask = torch.randn(2, *lengths, 2, 8), torch.rand(2, *lengths) > 0.3
        torch.testing.assert_close(program.module()(x, mask), Masked()(x, mask))
