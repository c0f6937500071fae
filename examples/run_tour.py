"""Run the notebook tour.ipynb from its first cell to its last, and keep the outputs in it."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).with_name("tour.ipynb")


def executed(path: Path = PATH, timeout: float = 300) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run from now.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False).execute()
    return notebook


if __name__ == "__main__":
    nbformat.write(executed(), PATH)
    sys.exit(0)
