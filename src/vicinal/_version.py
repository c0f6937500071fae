"""The version, read by the build and by `vicinal.__version__`."""

__version__ = "0.1.0"
