"""Versions of NATTEN's API, installed for one test."""

import pytest

from vicinal.compat import context, install_as_natten, uninstall_natten


@pytest.fixture(autouse=True)
def no_trace():
    """No version is installed before and after, and settings are as at import."""
    uninstall_natten()
    context.reset()
    yield
    uninstall_natten()
    context.reset()


@pytest.fixture
def install():
    """Installs a version and returns `natten`, all its modules imported."""
    return install_as_natten
