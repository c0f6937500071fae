"""The oracle against torch's own attention under the same mask, and its mask against small hand-drawn ones."""

import torch
from hypothesis import given

from strategies import calls
from vicinal import Neighborhood
from vicinal.problem import Inputs
from vicinal.reference import neighborhood_mask, reference


def drawn(*rows):
    return torch.tensor([[c == "#" for c in row] for row in rows])


def test_mask_drawn_by_hand():
    assert torch.equal(
        neighborhood_mask(Neighborhood.of(1, 3), (5,)), drawn("###..", "###..", ".###.", "..###", "..###")
    )
    assert torch.equal(
        neighborhood_mask(Neighborhood.of(1, 3, boundary="clip"), (5,)),
        drawn("##...", "###..", ".###.", "..###", "...##"),
    )
    assert torch.equal(
        neighborhood_mask(Neighborhood.of(1, 2, is_causal=True), (4,)), drawn("#...", "##..", ".##.", "..##")
    )
    assert torch.equal(
        neighborhood_mask(Neighborhood.of(1, 2, dilation=2), (5,)), drawn("#.#..", ".#.#.", "#.#..", ".#.#.", "..#.#")
    )


def test_mask_of_two_axes_is_the_product():
    mask = neighborhood_mask(Neighborhood.of(2, (1, 2), is_causal=(False, True)), (2, 3))
    row = drawn("#..", "##.", ".##")
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    assert torch.equal(mask, torch.cat([torch.cat([row, nothing], 1), torch.cat([nothing, row], 1)]))


@given(calls())
def test_output_is_torchs_attention_under_the_mask(call):
    q, k, v, ek, ev, rpb = call.inputs().numbers
    output, lse = reference(call.inputs(), call.neighborhoods, call.scale)
    assert output.dtype == lse.dtype == torch.float64
    if rpb is not None:
        return  # the bias is checked where it is indexed by hand, below
    masks = [neighborhood_mask(n, call.lengths) for n in call.neighborhoods]
    mask = torch.stack(masks * (call.heads // len(masks)))
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
    if ek is not None:
        k, v = torch.cat([k, ek.transpose(1, 2)], 2), torch.cat([v, ev.transpose(1, 2)], 2)
        mask = torch.cat([mask, torch.ones(*mask.shape[:2], call.additional, dtype=torch.bool)], 2)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    torch.testing.assert_close(output.flatten(1, -3).transpose(1, 2), expected)


def test_bias_is_indexed_by_key_minus_query():
    """With zero queries the scores are the bias alone: the log-sum-exp sums just the entries by hand."""
    rpb = torch.arange(5, dtype=torch.float64)[None]
    zeros = torch.zeros(1, 5, 1, 1, dtype=torch.float64)
    _, lse = reference(Inputs(zeros, zeros, zeros, rpb=rpb), [Neighborhood.of(1, 3)], 1.0)
    entries = [[2, 3, 4], [1, 2, 3], [1, 2, 3], [1, 2, 3], [0, 1, 2]]  # key - query + 2 of each window
    torch.testing.assert_close(lse[0, :, 0], torch.tensor(entries, dtype=torch.float64).logsumexp(1))


def test_queries_without_a_finite_score_have_output_and_gradients_of_zero():
    rpb = torch.zeros(1, 5, dtype=torch.float64)
    rpb[0, 2:] = float("-inf")  # only keys before the query are left, which the first has not
    leaves = [torch.ones(1, 5, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    output, lse = reference(Inputs(*leaves, rpb=rpb), [Neighborhood.of(1, 3)], 1.0)
    assert output.flatten().tolist() == [0, 1, 1, 1, 1]
    assert lse.flatten()[0] == float("-inf")
    grads = torch.autograd.grad(output.sum() + lse[:, 1:].sum(), leaves)
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[0][0, 0] == 0


def test_a_causal_window_may_be_longer_than_its_axis():
    assert torch.equal(neighborhood_mask(Neighborhood.of(1, 3, is_causal=True), (2,)), drawn("#.", "##"))
    assert torch.equal(
        neighborhood_mask(Neighborhood.of(1, 4, stride=2, dilation=2, is_causal=True), (5,)),
        drawn("#....", ".#...", "#.#..", ".#.#.", "#.#.#"),
    )
    assert torch.equal(neighborhood_mask(Neighborhood.of(1, 9, boundary="clip"), (2,)), drawn("##", "##"))
