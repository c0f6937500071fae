"""Names, order and defaults of arguments are those of NATTEN's public Python API, generation by generation.

The lists are facts of NATTEN's documentation (natten.org/operations, natten.org/modules; docs/frontend.md of 0.17;
README of 0.14), not code.
"""

import inspect

import pytest

import vicinal
from vicinal.compat import natten014, natten017, natten020

NA = {
    "query": ...,
    "key": ...,
    "value": ...,
    "kernel_size": ...,
    "stride": 1,
    "dilation": 1,
    "is_causal": False,
    "scale": None,
    "additional_keys": None,
    "additional_values": None,
    "attention_kwargs": None,
    "backend": None,
    "q_tile_shape": None,
    "kv_tile_shape": None,
    "backward_q_tile_shape": None,
    "backward_kv_tile_shape": None,
    "backward_kv_splits": None,
    "backward_use_pt_reduction": False,
    "run_persistent_kernel": True,
    "kernel_schedule": None,
    "torch_compile": False,
    "return_lse": False,
}
ATTENTION = {  # of 0.21.5 to 0.21.7
    "query": ...,
    "key": ...,
    "value": ...,
    "is_causal": False,
    "scale": None,
    "seqlens_Q": None,
    "seqlens_KV": None,
    "cumulative_seqlen_Q": None,
    "cumulative_seqlen_KV": None,
    "max_seqlen_Q": None,
    "max_seqlen_KV": None,
    "backend": None,
    "q_tile_size": None,
    "kv_tile_size": None,
    "backward_q_tile_size": None,
    "backward_kv_tile_size": None,
    "backward_kv_splits": None,
    "backward_use_pt_reduction": False,
    "run_persistent_kernel": True,
    "kernel_schedule": None,
    "torch_compile": False,
    "return_lse": False,
}
MERGE = {"outputs": ..., "lse_tensors": ..., "torch_compile": True, "use_autograd_fix": True}
MODULE = {
    "embed_dim": ...,
    "num_heads": ...,
    "kernel_size": ...,
    "stride": 1,
    "dilation": 1,
    "is_causal": False,
    "qkv_bias": True,
    "qk_scale": None,
    "proj_drop": 0.0,
}
MODULE_017 = {
    "dim": ...,
    "num_heads": ...,
    "kernel_size": ...,
    "dilation": 1,
    "is_causal": False,
    "rel_pos_bias": False,
    "qkv_bias": True,
    "qk_scale": None,
    "attn_drop": 0.0,
    "proj_drop": 0.0,
}
MODULE_014 = {
    "dim": ...,
    "num_heads": ...,
    "kernel_size": ...,
    "dilation": 1,
    "bias": True,
    "qkv_bias": True,
    "qk_scale": None,
    "attn_drop": 0.0,
    "proj_drop": 0.0,
}
FUSED_017 = {
    "query": ...,
    "key": ...,
    "value": ...,
    "kernel_size": ...,
    "dilation": 1,
    "is_causal": False,
    "rpb": None,
    "scale": None,
    "additional_keys": None,
    "additional_values": None,
    "xformers_kwargs": None,
}
QK_017 = {
    "query": ...,
    "key": ...,
    "kernel_size": ...,
    "dilation": 1,
    "additional_keys": None,
    "is_causal": False,
    "rpb": None,
}
AV_017 = {
    "attn": ...,
    "value": ...,
    "kernel_size": ...,
    "dilation": 1,
    "additional_values": None,
    "is_causal": False,
}
PLAIN_3D = {
    "query": ...,
    "key": ...,
    "rpb": ...,
    "kernel_size_d": ...,
    "kernel_size": ...,
    "dilation_d": ...,
    "dilation": ...,
}

RANKS = (1, 2, 3)
EXPECTED = [
    *((vicinal, f"na{r}d", NA) for r in RANKS),
    (vicinal, "attention", ATTENTION),
    (vicinal, "merge_attentions", MERGE),
    *((vicinal, f"NeighborhoodAttention{r}D", MODULE) for r in RANKS),
    *((natten020, f"na{r}d", NA) for r in RANKS),
    *((natten017, f"na{r}d", FUSED_017) for r in RANKS),
    *((natten017, f"na{r}d_qk", QK_017) for r in RANKS),
    *((natten017, f"na{r}d_av", AV_017) for r in RANKS),
    *((natten017, f"NeighborhoodAttention{r}D", MODULE_017) for r in RANKS),
    (natten017, "natten3dqkrpb", PLAIN_3D),
    *((natten014, f"NeighborhoodAttention{r}D", MODULE_014) for r in (1, 2)),
]


@pytest.mark.parametrize(("module", "name", "expected"), EXPECTED, ids=lambda x: getattr(x, "__name__", None))
def test_signature(module, name, expected):
    """Positional arguments are exactly these; what vicinal adds is keyword-only."""
    parameters = inspect.signature(getattr(module, name)).parameters.values()
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional) == list(expected)
    given = {n: ... if d is inspect.Parameter.empty else d for n, d in positional.items()}
    assert given == expected
