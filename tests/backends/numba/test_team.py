"""Tasks of the CPU backend side by side: what they compute, what they raise, what they leave alone."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vicinal.backends.numba import team as cpu_threads


@pytest.fixture(params=[2, 3])
def threads(request):
    """More threads of torch's than tests have elsewhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_task_runs_once_on_one_thread_of_torch(threads):
    seen = []

    def note(task):
        time.sleep(0.002)
        seen.append((task, threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))

    cpu_threads.each(note, range(20), True)
    assert sorted(task for task, *_ in seen) == list(range(20))
    assert len({ident for _, ident, *_ in seen}) == threads
    assert {(count, grad) for *_, count, grad in seen} == {(1, False)}
    assert torch.get_num_threads() == threads


def test_new_threads_of_the_user_have_torch_s_setting(two_threads):
    cpu_threads.each(lambda task: None, range(2), True)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_in_turn_on_the_caller_s_thread():
    seen = []
    cpu_threads.each(lambda task: seen.append((task, threading.get_ident())), range(3), False)
    assert seen == [(task, threading.get_ident()) for task in range(3)]


@pytest.mark.parametrize("error", [ValueError, IndexError, KeyboardInterrupt])
def test_exceptions_reach_the_caller_and_the_threads_live_on(two_threads, error):
    def fail(task):
        if task == 3:
            raise error("task 3")

    with pytest.raises(error, match="task 3"):
        cpu_threads.each(fail, range(100), True)
    done = []
    cpu_threads.each(done.append, range(4), True)
    assert sorted(done) == list(range(4))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that interrupt")
def test_an_interrupted_caller_can_go_on(two_threads):
    class Interrupted(BaseException):
        pass

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    begun = []
    try:
        with pytest.raises(Interrupted):
            cpu_threads.each(lambda task: (begun.append(task), time.sleep(0.02)), range(1000), True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    done = []
    cpu_threads.each(done.append, range(4), True)
    assert sorted(done) == list(range(4))
    time.sleep(0.1)
    assert len(begun) < 100


def test_tasks_within_tasks_run_in_turn(two_threads):
    done = []
    cpu_threads.each(lambda i: cpu_threads.each(lambda j: done.append((i, j)), range(3), True), range(3), True)
    assert sorted(done) == [(i, j) for i in range(3) for j in range(3)]


@pytest.mark.parametrize("inference", [False, True])
def test_tasks_see_the_caller_s_inference_mode(two_threads, inference):
    seen = []
    with torch.inference_mode(inference):
        cpu_threads.each(lambda task: seen.append(torch.is_inference_mode_enabled()), range(4), True)
    assert seen == [inference] * 4


def test_callers_on_several_threads_take_turns(two_threads):
    def total(start):
        parts = []
        cpu_threads.each(parts.append, range(start, start + 50), True)
        return sum(parts)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(total, range(0, 400, 50)))
    assert found == [sum(range(start, start + 50)) for start in range(0, 400, 50)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_threads_of_its_own(two_threads):
    done = []
    cpu_threads.each(done.append, range(4), True)
    child = os.fork()
    if child == 0:
        done.clear()
        cpu_threads.each(done.append, range(4), True)
        os._exit(0 if sorted(done) == list(range(4)) else 1)
    deadline = time.monotonic() + 20
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if status == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert status == (child, 0)
