"""Right and wrong calls, read by type checkers and never run: they must complain at the lines that say `# wrong`."""

from torch import Tensor
from typing_extensions import assert_type

import vicinal
from vicinal import Neighborhood, unfused

Both = Tensor | tuple[Tensor, Tensor]


def na(q: Tensor, rpb: Tensor, flag: bool, scale: Tensor) -> None:
    assert_type(vicinal.na1d(q, q, q, 7), Tensor)
    assert_type(vicinal.na2d(q, q, q, (7, 5), (2, 1), 1, (True, False), 0.5), Tensor)
    assert_type(vicinal.na3d(q, q, q, [7, None, 5], dilation=None, is_causal=None), Tensor)
    assert_type(vicinal.na1d(q, q, q, None, return_lse=False, boundary="clip"), Tensor)
    assert_type(vicinal.na2d(q, q, q, 7, rpb=rpb, boundary=("shift", "clip"), backend="numba"), Tensor)
    assert_type(vicinal.na3d(q, q, q, 7, 1, 1, False, None, q, q, q_tile_shape=(8, 4, 4), torch_compile=True), Tensor)
    assert_type(vicinal.na1d(q, q, q, 7, return_lse=True), tuple[Tensor, Tensor])
    assert_type(vicinal.na2d(q, q, q, 7, return_lse=True, rpb=rpb), tuple[Tensor, Tensor])
    assert_type(vicinal.na3d(q, q, q, 7, return_lse=True), tuple[Tensor, Tensor])
    assert_type(vicinal.na1d(q, q, q, 7, return_lse=flag), Both)
    assert_type(vicinal.na2d(q, q, q, 7, return_lse=flag), Both)
    assert_type(vicinal.na3d(q, q, q, 7, return_lse=flag), Both)
    vicinal.na1d(q, q, q, 7, window=3)  # wrong
    vicinal.na2d(q, q, q, kernel=7)  # wrong
    vicinal.na3d(q, q, q, 7, return_logsumexp=True)  # wrong
    vicinal.na1d(q, q, q)  # wrong
    vicinal.na2d(q, q, q, "7")  # wrong
    vicinal.na2d(q, q, q, 7.0)  # wrong
    vicinal.na3d([q], q, q, 7)  # wrong
    vicinal.na1d(q, q, q, 7, scale=scale)  # wrong
    vicinal.na2d(q, q, q, 7, boundary="mirror")  # wrong
    vicinal.na3d(q, q, q, 7, return_lse="yes")  # wrong
    vicinal.na1d(q, q, q, 7).sum()
    vicinal.na2d(q, q, q, 7, return_lse=True).sum()  # wrong
    _output, _lse = vicinal.na3d(q, q, q, 7, return_lse=True)


def any_rank(q: Tensor, rpb: Tensor, flag: bool) -> None:
    one = Neighborhood.of(2, 7)
    assert_type(vicinal.neighborhood_attention(q, q, q, one), Tensor)
    assert_type(vicinal.neighborhood_attention(q, q, q, [one, one]), Tensor)
    assert_type(vicinal.neighborhood_attention(q, q, q, 7, scale=1.0, rpb=rpb), Tensor)
    assert_type(vicinal.neighborhood_attention(q, q, q, (7, None)), Tensor)
    assert_type(vicinal.neighborhood_attention(q, q, q, one, return_lse=True), tuple[Tensor, Tensor])
    assert_type(vicinal.neighborhood_attention(q, q, q, one, return_lse=flag), Both)
    vicinal.neighborhood_attention(q, q, q, one, kernel_size=7)  # wrong
    vicinal.neighborhood_attention(q, q, q)  # wrong
    vicinal.neighborhood_attention(q, q, q, 7.0)  # wrong
    vicinal.neighborhood_attention(q, q, q, one, 1.0)  # wrong


def plain(q: Tensor, lengths: Tensor, flag: bool) -> None:
    assert_type(vicinal.attention(q, q, q), Tensor)
    assert_type(vicinal.attention(q, q, q, True, 0.5), Tensor)
    assert_type(vicinal.attention(q, q, q, seqlens_Q=lengths, seqlens_KV=lengths), Tensor)
    assert_type(vicinal.attention(q, q, q, max_seqlen_Q=3, return_lse=True), tuple[Tensor, Tensor])
    assert_type(vicinal.attention(q, q, q, return_lse=flag), Both)
    assert_type(vicinal.merge_attentions([q, q], (q, q)), tuple[Tensor, Tensor])
    vicinal.attention(q, q, q, 0.5)  # wrong
    vicinal.attention(q, q, q, causal=True)  # wrong
    vicinal.attention(q, q, q, seqlens_Q=[3, 4])  # wrong
    vicinal.merge_attentions([q], [q], dim=0)  # wrong
    vicinal.merge_attentions([q, 1.0], [q, q])  # wrong


def modules(x: Tensor) -> None:
    module = vicinal.NeighborhoodAttention2D(64, 4, 7, dilation=(2, 1), boundary="clip", device="meta")
    assert_type(module(x), Tensor)
    assert_type(module.kernel_size, tuple[int | None, ...])
    assert_type(module.is_causal, tuple[bool, ...])
    module.kernel_size = 5
    module.stride = (2, 1)
    module.stride = "2"  # wrong
    module.boundary = "mirror"  # wrong
    module(x, x)  # wrong
    module(x, mask=x)  # wrong
    module([x])  # wrong
    vicinal.NeighborhoodAttention1D(64, 4, 7, heads=4)  # wrong
    vicinal.NeighborhoodAttention3D(64, 4)  # wrong
    vicinal.NeighborhoodAttention2D(64, 4, 7, qkv_bias="no")  # wrong


def scores(q: Tensor, attn: Tensor) -> None:
    assert_type(unfused.na2d_qk(q, q, 7, scale=0.5), Tensor)
    assert_type(unfused.na1d_qkrpb(q, q, None, 7, dilation=2), Tensor)
    assert_type(unfused.na3d_av(attn, q, (3, 5, 7), boundary="clip"), Tensor)
    assert_type(unfused.neighborhood_qk(q, q, 7), Tensor)
    unfused.na2d_qk(q, q, 7, window=3)  # wrong
    unfused.na1d_av(attn, q)  # wrong
    unfused.na3d_qkrpb(q, q, 7, 3.0)  # wrong
    unfused.neighborhood_av(attn, q, 7, scale=1.0)  # wrong
