"""The reader of PTX sees accesses before any wait, not only before the first."""

from __future__ import annotations

import pytest

from backends.gpu.ptx import before_waits

TWO_PARTITIONS = """
.visible .entry kernel(
)
{{
	brx.idx 	%r1, $L_brx_0;
	$L_brx_0: .branchtargets
		$L__BB0_1,
		$L__BB0_2;
$L__BB0_1:                              // the first partition waits
	griddepcontrol.wait;
	ld.global.b32 	%r2, [%rd1];
	ret;
$L__BB0_2:
	@%p1 bra 	$L__BB0_4;
	{second}
$L__BB0_4:
	{third}
	ret;
}}
"""
WAIT = "griddepcontrol.wait;"
LOAD = "ld.global.v4.b32 	{%r3, %r4, %r5, %r6}, [%rd2];"
COPY = "cp.async.bulk.tensor.5d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2}], [%r3];"
STORE = "st.global.b32 	[%rd3], %r7;"
ADD = "red.relaxed.gpu.global.add.v4.f32 [%rd3], {%r3, %r4, %r5, %r6};"
TAKE = "@first atom.relaxed.gpu.global.add.u32 %r3, [%rd3], 1;"
COPY_BACK = "@%p1 cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%rd1, {%r2}], [%r3];"


@pytest.mark.parametrize(
    ("second", "third", "reads", "writes"),
    [
        ("", LOAD, 1, 1),  # the other partition's wait does not count
        (WAIT, LOAD, 1, 1),  # nor one that a branch passes by
        ("", WAIT + "\n" + LOAD, 0, 0),
        (COPY, WAIT + "\n" + STORE, 1, 1),
        ("", STORE, 0, 1),
        ("", COPY_BACK, 0, 1),
        ("", ADD, 0, 1),
        ("", TAKE, 1, 1),
        ("ld.shared.b32 %r1, [%r2];", "ld.param.b64 %rd1, [kernel_param_0];", 0, 0),
    ],
)
def test_every_access_before_every_wait_counts(second, third, reads, writes):
    ptx = TWO_PARTITIONS.format(second=second, third=third)
    assert len(before_waits(ptx, writes=False)) == reads
    assert len(before_waits(ptx, writes=True)) == writes
