"""Without the extra `models` its tests are left out; with it vicinal.models comes before timm (see its torchvision)."""

from importlib.util import find_spec

if find_spec("timm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import vicinal.models  # noqa: F401
