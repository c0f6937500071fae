"""CUDA graphs without a GPU: what capturing does with calls that fail, or that launch nothing."""

import warnings

import pytest
import torch

from vicinal.bench import graphs

CPU = torch.device("cpu")


class Graph:
    """In place of torch's: holds the calls made while it captures; torch warns of an empty one."""

    capturing = None

    def capture_begin(self, pool):
        self.calls = []
        Graph.capturing = self

    def capture_end(self):
        Graph.capturing = None
        if not self.calls:
            warnings.warn("The CUDA Graph is empty. This usually means ...", UserWarning, stacklevel=1)

    def pool(self):
        return id(self)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(graphs, "_pool", lambda device: None)


def launch() -> None:
    Graph.capturing.calls.append("kernel")


def fail() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_so_many_calls_are_captured(fake):
    assert graphs.captured(launch, 3, CPU).calls == ["kernel"] * 3


def test_a_graph_of_nothing_is_an_error(fake):
    with pytest.raises(UserWarning, match="empty"):
        graphs.captured(lambda: None, 3, CPU)


def test_a_call_that_fails_ends_the_capture_and_says_why(fake, recwarn):
    with pytest.raises(torch.OutOfMemoryError):
        graphs.captured(fail, 3, CPU)
    assert Graph.capturing is None
    assert not recwarn.list


def test_memory_of_graphs_is_given_back_with_the_rest(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(graphs, "_graph", lambda call, count, pool: Graph())
    first = graphs._pool(CPU)
    assert graphs._pool(CPU) == first
    kept = graphs._keepers[-1]
    graphs.give_back(CPU)
    assert not graphs._keepers
    assert graphs._pool(CPU) != first
    graphs.give_back(CPU)
    del kept
