"""Older public generations of NATTEN's Python API over vicinal's operators, for published code that calls them.

    from vicinal.compat import install_as_natten

    install_as_natten("0.17")  # from here on `import natten` is vicinal

Generations, by NATTEN's version:
    0.14: `natten{1,2}dqkrpb`, `natten{1,2}dav`, heads-first `[B, H, *X, D]`; modules with `dim=`, `bias=True` for the
        relative positional bias, and input zero-padded to the window before the projection.
    0.15 to 0.17: `na{1,2,3}d_qk`, `_qkrpb`, `_av`, heads-first; fused `na{1,2,3}d`, heads-last, with dilation as fifth
        argument; `has_fused_na`, `use_fused_na`, `use_autotuner` and their like; modules with `rel_pos_bias=`.
    0.20 and later: the names and layouts of `vicinal` itself.

What an old call asks for and vicinal has no such thing for is said in a warning (performance knobs) or an error
(results would differ). Nothing is silently skipped.
"""

from vicinal.compat.install import GENERATIONS, install_as_natten, uninstall_natten

__all__ = ["GENERATIONS", "install_as_natten", "uninstall_natten"]
