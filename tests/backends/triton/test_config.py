"""Configurations of the Triton kernels, as they are printed and compared."""

import pytest

from vicinal.backends.triton.config import GradientTilings, Tiling

QUERY, KEYS = Tiling((8, 16), (4, 8), 8, 3), Tiling((4, 16), (8, 8), 8, 3)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (QUERY, "8x16 queries by 4x8 keys, 8 warps, 3 stages"),
        (
            Tiling((4, 8), (4, 4), unfolded=0),
            "4x8 queries by 4x4 keys, 4 warps, 2 stages, groups of axis 0 side by side",
        ),
        (
            GradientTilings(QUERY, Tiling((4, 16), (8, 8), 4, 2)),
            "8x16 queries by 4x8 keys, 8 warps, 3 stages; 4x16 keys by 8x8 queries, 4 warps, 2 stages",
        ),
        (
            GradientTilings(QUERY, KEYS, together=True),
            "8x16 queries by 4x8 keys and 4x16 keys by 8x8 queries at once, 8 warps, 3 stages",
        ),
    ],
)
def test_words(config, words):
    assert str(config) == words


def test_kernels_in_one_launch_have_its_warps():
    with pytest.raises(ValueError, match="same warps, stages and unfolded axis, got .*4 warps"):
        GradientTilings(QUERY, Tiling((4, 16), (8, 8), 4, 3), together=True)
