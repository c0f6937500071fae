"""The Python API of NATTEN's versions, from 0.14.1 to 0.21.7, over vicinal's operators.

    from vicinal.compat import install_as_natten

    install_as_natten("0.17.3")  # from here on `import natten` is vicinal, with 0.17.3's names and signatures

An unmodified program runs by `python -m vicinal.compat --natten 0.17 script.py arguments`. What an old call asks for
and vicinal has no such thing for is said in a warning (performance knobs) or an error (results would differ): nothing
is silently skipped. docs/migrating.md says what each version has.
"""

from vicinal.compat.install import install_as_natten, uninstall_natten
from vicinal.compat.versions import GENERATIONS

__all__ = ["GENERATIONS", "install_as_natten", "uninstall_natten"]
