"""With the directory above on PYTHONPATH, `import natten` is vicinal with the API of the version in VICINAL_NATTEN."""

import os
import sys

from vicinal.compat import install_as_natten

if __name__ == "natten":
    del sys.modules[__name__]  # the import that runs this takes what is there afterwards
    install_as_natten(os.environ.get("VICINAL_NATTEN", "0.21"))
