"""Compilations in threads: order, errors, forks, the process's end. Kernels are stubs here."""

import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from vicinal import compiling, dispatch, na2d, routing
from vicinal.compiling import ahead, one_at_a_time
from vicinal.problem import Wanted

SECONDS = 20


def wait_for(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def threads():
    return [t for t in threading.enumerate() if t.name == "vicinal-compiling"]


def test_jobs_run_side_by_side_and_leave_no_thread():
    meeting = threading.Barrier(compiling.WORKERS, timeout=SECONDS)
    done = []
    ahead(lambda: [lambda i=i: done.append((meeting.wait(), i)) for i in range(compiling.WORKERS)])
    wait_for(lambda: len(done) == compiling.WORKERS and not threads())


def test_never_more_threads_than_workers():
    most = []
    ahead(lambda: [lambda: (most.append(len(threads())), time.sleep(0.01)) for _ in range(20)])
    wait_for(lambda: len(most) == 20 and not threads())
    assert max(most) <= compiling.WORKERS


def test_an_error_stops_nothing_else(caplog):
    caplog.set_level(logging.DEBUG, "vicinal.compiling")
    done = []
    ahead(lambda: [lambda: 1 / 0, lambda: done.append(1)])
    ahead(lambda: [][0])
    wait_for(lambda: done and len(caplog.records) == 2 and not threads())
    assert {r.message.split(": ")[0] for r in caplog.records} == {"compiling ahead failed"}


def test_one_thread_compiles_a_kernel_and_others_find_it():
    compiled = []

    def compile_once():
        with compiling.compiling("a kernel", "a kernel"):
            if not compiled:
                time.sleep(0.05)
                compiled.append(threading.current_thread())

    several = [threading.Thread(target=compile_once) for _ in range(4)]
    for each in several:
        each.start()
    for each in several:
        each.join()
    assert len(compiled) == 1


def test_other_kernels_need_not_wait():
    meeting = threading.Barrier(2, timeout=SECONDS)

    def compile_one(name):
        with compiling.compiling(name, name):
            meeting.wait()

    other = threading.Thread(target=compile_one, args=("one",))
    other.start()
    compile_one("another")
    other.join()


def test_the_log_says_what_is_compiled(caplog):
    caplog.set_level(logging.INFO, "vicinal.compiling")
    with compiling.compiling("k", "triton.forward_kernel"):
        pass
    first, second = (r.getMessage() for r in caplog.records)
    assert first == "compiling triton.forward_kernel, or reading it from disk"
    assert re.fullmatch(r"triton.forward_kernel is ready after \d+\.\d\d s", second)


def test_what_fails_is_not_called_ready(caplog):
    caplog.set_level(logging.INFO, "vicinal.compiling")
    with pytest.raises(ZeroDivisionError), compiling.compiling("k", "k"):
        raise ZeroDivisionError
    assert len(caplog.records) == 1
    with one_at_a_time("k"):  # is free again
        pass


@pytest.mark.parametrize(("terminal", "after", "told"), [(True, 0.0, True), (True, 3600.0, False), (False, 0.0, False)])
def test_a_watching_terminal_is_told_of_what_takes_long(monkeypatch, capsys, terminal, after, told):
    tell, said = compiling._tell, threading.Event()
    monkeypatch.setattr(compiling, "_teller", compiling._Teller())
    monkeypatch.setattr(compiling, "TOLD_AFTER", after)
    monkeypatch.setattr(compiling, "_tell", lambda name: (tell(name), said.set()))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with compiling.compiling("k", "triton.forward_kernel"):
        assert said.wait(SECONDS if told else 0.05) is told
    assert capsys.readouterr().err == "vicinal: compiling triton.forward_kernel, once; it is kept on disk\n" * told


def test_one_thread_tells_of_all_that_take_long(monkeypatch, capsys):
    """Of three side by side, one of which is ready before."""
    monkeypatch.setattr(compiling, "TOLD_AFTER", 0.2)
    monkeypatch.setattr(compiling, "_teller", compiling._Teller())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    before = set(threading.enumerate())

    def tellers():
        return set(threading.enumerate()) - before

    with compiling.compiling("a", "a"), compiling.compiling("b", "b"):
        with compiling.compiling("c", "c"):
            assert len(tellers()) == 1
        wait_for(lambda: not tellers())
    told = "vicinal: compiling {}, once; it is kept on disk\n"
    assert capsys.readouterr().err == told.format("a") + told.format("b")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_waits_for_no_thread_of_its_parent():
    held, free = threading.Event(), threading.Event()

    def hold():
        with one_at_a_time("held"):
            held.set()
            free.wait(SECONDS)

    ahead(lambda: [hold])
    assert held.wait(SECONDS)
    child = os.fork()
    if child == 0:
        done = threading.Event()
        with one_at_a_time("held"):
            ahead(lambda: [done.set])
        os._exit(0 if done.wait(SECONDS) else 1)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        free.set()
    wait_for(lambda: not threads())


def test_the_process_ends_when_what_runs_has_ended_and_drops_the_rest():
    script = """
        import os, threading, time
        from vicinal.compiling import WORKERS, ahead
        started = threading.Semaphore(0)
        def job():
            started.release()
            while threading.main_thread().is_alive():
                time.sleep(0.002)
            os.write(1, b"done ")  # in one piece
        ahead(lambda: [job] * 100)
        for _ in range(WORKERS):
            started.acquire()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.count("done") == compiling.WORKERS


# What calls begin ------------------------------------------------------------------------------------------------


class Compiled:
    """The numba backend, with compilations to watch."""

    def __init__(self):
        self.asked, self.error = [], None
        self.done = threading.Event()

    def backward_kernels(self, problem, config, inputs, wanted):
        self.asked.append((inputs, wanted))
        if self.error:
            raise self.error
        return [self.done.set]

    def __getattr__(self, name):
        return getattr(dispatch.backend("numba"), name)


@pytest.fixture
def compiled(monkeypatch):
    """A backend whose plans are taken, on tensors that say they are on a GPU where it is asked."""
    stub = Compiled()
    monkeypatch.setattr(dispatch.Plan, "gradients", property(lambda self: stub))
    monkeypatch.setattr(routing, "COMPILED_AHEAD", ("cpu",))
    routing._calls.clear()
    routing._begun.clear()
    yield stub
    wait_for(lambda: not threads())
    routing._calls.clear()
    routing._begun.clear()


def leaves(**options):
    return [torch.randn(2, 6, 7, 2, 8, **options) for _ in range(3)]


def test_a_forward_that_needs_gradients_begins_its_backward_s_compilations(compiled):
    q, k, v = leaves()
    q = q.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    output = na2d(q, k, v, 3)
    assert compiled.done.wait(SECONDS)
    ((inputs, wanted),) = compiled.asked
    assert wanted == Wanted(True, False, False, False, False, False)
    assert inputs.query.is_meta
    assert (inputs.query.shape, inputs.query.stride()) == (q.shape, q.stride())
    na2d(q, k, v, 3).sum().backward()
    output.sum().backward()
    assert len(compiled.asked) == 1  # once


def test_kernels_that_are_compiled_already_are_not_prepared_again(compiled):
    """Another batch is another call and takes the same kernels; another head dim takes others."""

    def call(batch, dim):
        na2d(*(torch.randn(batch, 6, 7, 2, dim, requires_grad=True) for _ in range(3)), 3)
        wait_for(lambda: not threads())

    for batch, dim, asked in ((2, 8, 1), (3, 8, 1), (3, 16, 2), (2, 16, 2)):
        call(batch, dim)
        assert len(compiled.asked) == asked


@pytest.mark.parametrize("without", ["gradients", "batch", "leaves"])
def test_others_compile_nothing(compiled, without):
    tensors = leaves(requires_grad=without != "leaves")
    if without == "batch":
        tensors = [t[:0] for t in tensors]
    with torch.set_grad_enabled(without != "gradients"):
        na2d(*tensors, 3)
    wait_for(lambda: not threads())
    assert compiled.asked == []


def test_gradients_that_are_needed_later_are_compiled_then(compiled):
    tensors = leaves(requires_grad=True)
    with torch.no_grad():
        na2d(*tensors, 3)
    na2d(*tensors, 3)
    assert compiled.done.wait(SECONDS)


def test_what_cannot_be_compiled_is_raised_where_it_is_needed(compiled, monkeypatch):
    compiled.error = RuntimeError("no such instruction")

    def backward(*_):
        raise compiled.error

    monkeypatch.setattr(type(dispatch.backend("numba")), "backward", backward)
    output = na2d(*leaves(requires_grad=True), 3)  # the forward knows nothing of it
    wait_for(lambda: compiled.asked and not threads())
    with pytest.raises(RuntimeError, match="no such instruction"):
        output.sum().backward()
