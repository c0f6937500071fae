import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vicinal import dispatch, na2d
from vicinal.backends.gpu.hardware import standing_for
from vicinal.backends.hopper import config as hopper_config
from vicinal.backends.protocol import settings
from vicinal.backends.triton import config as triton_config
from vicinal.bench.cases import SUITES, Case
from vicinal.bench.planning import CARD
from vicinal.explain import explanation
from vicinal.extras import MissingExtra
from vicinal.machine import device_name
from vicinal.tuning import cache
from vicinal.tuning.table import Entry, ProblemClass, Table, Timed

CPU = torch.device("cpu")
DEVICE = device_name(CPU)


def entry_of(problem, configs, direction="forward", name="numba"):
    timings = tuple(Timed(name, settings(config), 1e-5 * (i + 1)) for i, config in enumerate(configs))
    return Entry(ProblemClass.of(problem), direction, cache.versions(), problem.in_words(), timings)


def tilings(problem):
    return dispatch.backend("numba").configs(problem, "forward")


def test_a_plan_takes_what_was_measured_to_be_fastest(problem):
    first, second, *_ = tilings(problem)
    assert dispatch.plan(problem).forward == first
    cache.publish(CPU, [entry_of(problem, [second, first])])
    assert dispatch.plan(problem).forward == second
    assert dispatch.plan(problem).backward == dispatch.backend("numba").configs(problem, "backward")[0]
    assert dispatch.plan(problem, "numba").forward == second
    assert dispatch.explain(problem)[2].configs["forward"][:2] == [second, first]


def test_another_problem_of_the_class_takes_it_too(problem):
    near = replace(problem, lengths=(9, 13))
    fastest = next(c for c in tilings(problem)[1:] if settings(c) in [settings(n) for n in tilings(near)[1:]])
    cache.publish(CPU, [entry_of(problem, [fastest, tilings(problem)[0]])])
    assert settings(dispatch.plan(near).forward) == settings(dispatch.plan(problem).forward) == settings(fastest)
    far = replace(problem, lengths=(10, 200))
    assert dispatch.plan(far).forward == tilings(far)[0]


def test_a_backend_is_chosen_by_what_was_measured_of_it(problem):
    (config,) = dispatch.backend("torch").configs(problem, "forward")
    cache.publish(CPU, [entry_of(problem, [config], name="torch")])
    chosen = dispatch.plan(problem)
    assert (chosen.backend.name, chosen.gradients.name) == ("torch", "numba")
    assert dispatch.plan(problem, "numba").forward == tilings(problem)[0]


def test_what_a_table_says_and_no_kernel_can_is_passed_over(problem):
    unknown = Timed("numba", {"tiles": [[5, 5]]}, 1e-9), Timed("abacus", {}, 1e-9)
    entry = entry_of(problem, tilings(problem)[2:3])
    cache.publish(CPU, [replace(entry, timings=unknown + entry.timings)])
    assert dispatch.plan(problem).forward == tilings(problem)[2]
    cache.publish(CPU, [replace(entry, timings=unknown)])
    assert dispatch.plan(problem).forward == tilings(problem)[0]


def test_calls_follow_a_table_that_changes(problem, monkeypatch):
    tensors = [torch.ones(1, 9, 12, 2, 8, requires_grad=True) for _ in range(3)]
    numba, seen = dispatch.backend("numba"), []
    run = type(numba).forward
    monkeypatch.setattr(type(numba), "forward", lambda self, p, c, i: seen.append(c) or run(self, p, c, i))
    na2d(*tensors, 3)
    cache.publish(CPU, [entry_of(problem, tilings(problem)[1:])])
    na2d(*tensors, 3)
    with torch.utils.flop_counter.FlopCounterMode(display=False):  # the operator's way
        na2d(*tensors, 3)
    assert seen == [tilings(problem)[0], tilings(problem)[1], tilings(problem)[1]]


def test_what_is_saved_is_read_by_the_next_process(problem):
    other = replace(problem, dtype=torch.float64)
    cache.save(DEVICE, [entry_of(problem, tilings(problem)[1:])])
    path = cache.save(DEVICE, [entry_of(other, tilings(other)[2:])])
    assert len(cache.read(DEVICE).entries) == 2
    cache.reload()
    assert [dispatch.plan(p).forward for p in (problem, other)] == [tilings(problem)[1], tilings(other)[2]]
    assert path.parent == cache.folder()
    assert path == cache.path_of(DEVICE)


@pytest.mark.parametrize("field", ["torch", "triton", "numba", "kernels"])
def test_timings_of_other_versions_are_kept_and_not_used(problem, field):
    entry = entry_of(problem, tilings(problem)[1:])
    old = replace(entry, versions=replace(entry.versions, **{field: "other"}))
    cache.save(DEVICE, [old])
    cache.reload()
    assert dispatch.plan(problem).forward == tilings(problem)[0]
    cache.save(DEVICE, [replace(entry, timings=entry.timings[1:])])
    assert len(cache.read(DEVICE).entries) == 2


def test_a_damaged_table_costs_a_warning_and_is_written_anew(problem):
    path = cache.save(DEVICE, [entry_of(problem, tilings(problem)[1:])])
    path.write_text(path.read_text()[:-30])
    cache.reload()
    with pytest.warns(UserWarning, match=f"tuning table {path} is left out: it is no table"):
        assert dispatch.plan(problem).forward == tilings(problem)[0]
    with pytest.warns(UserWarning, match="left out"):
        cache.save(DEVICE, [entry_of(problem, tilings(problem)[2:])])
    cache.reload()
    assert dispatch.plan(problem).forward == tilings(problem)[2]


def test_savers_do_not_lose_each_other_s_entries(problem):
    each = [replace(entry_of(problem, tilings(problem)), measured=str(i)) for i in range(8)]
    each = [replace(e, problems=replace(e.problems, head_dim=i)) for i, e in enumerate(each)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda entry: cache.save(DEVICE, [entry]), each))
    assert {e.measured for e in cache.read(DEVICE).entries.values()} == set("01234567")


def test_clear_deletes_the_table(problem):
    assert not cache.clear(DEVICE)
    path = cache.save(DEVICE, [entry_of(problem, tilings(problem)[1:])])
    cache.reload()
    assert cache.clear(DEVICE)
    assert not path.exists()
    assert dispatch.plan(problem).forward == tilings(problem)[0]


def test_the_user_s_table_comes_before_the_package_s(problem, monkeypatch):
    shipped, own = entry_of(problem, tilings(problem)[1:]), entry_of(problem, tilings(problem)[2:])
    shipped = replace(shipped, versions=replace(shipped.versions, torch="older"))  # is of use all the same
    monkeypatch.setattr(cache, "_shipped", lambda name: Table(name, {shipped.key: shipped}))
    cache.reload()
    assert dispatch.plan(problem).forward == tilings(problem)[1]
    cache.publish(CPU, [own])
    assert dispatch.plan(problem).forward == tilings(problem)[2]


def near_problem(problem, lengths):
    return Case("", lengths, problem.neighborhood, heads=2, head_dim=8).problem("cpu")


def test_a_class_near_by_stands_for_one_that_was_never_measured(problem):
    near, nearer, far = (near_problem(problem, lengths) for lengths in ((9, 20), (9, 15), (9, 40)))
    (*_, last) = tilings(near)
    cache.publish(CPU, [entry_of(problem, [last])])
    assert [cache.look_up(p, "forward").distance for p in (problem, nearer, near)] == [0, 1, 2]
    assert cache.look_up(far, "forward") is None
    assert cache.look_up(near, "backward") is None
    assert cache.look_up(replace(near, head_dim=16), "forward") is None
    assert settings(dispatch.plan(near).forward) == settings(last)
    said = " ".join(explanation(near, 200).split())
    assert f"forward by {problem.in_words()}, of a class at distance 2, in your table" in said


def test_the_nearest_counts_and_of_two_the_user_s(problem, monkeypatch):
    first, second, third = (near_problem(problem, lengths) for lengths in ((9, 12), (9, 20), (9, 40)))
    shipped = {e.key: e for e in (entry_of(p, tilings(p)[1:], "forward") for p in (first, third))}
    monkeypatch.setattr(cache, "_shipped", lambda name: Table(name, shipped))
    cache.reload()
    own = entry_of(second, tilings(second)[2:])
    found = cache.look_up(first, "forward")
    assert (found.distance, found.shipped) == (0, True)
    cache.publish(CPU, [own])
    assert cache.look_up(first, "forward") == found  # its own class comes before any near one
    middle = near_problem(problem, (17, 20))
    assert cache.look_up(middle, "forward")[1:] == (1, False)


def test_explain_says_whether_the_device_was_measured(problem):
    assert f"{DEVICE} was never measured" in " ".join(explanation(problem, 200).split())
    cache.publish(CPU, [entry_of(problem, tilings(problem)[1:])])
    said = " ".join(explanation(problem, 200).split())
    assert f"Measured on such a device: forward by {problem.in_words()}, of this class, in your table." in said
    assert "This kind of problem was never measured" in explanation(replace(problem, has_rpb=True), 200)


def test_explain_says_with_which_versions_a_shipped_entry_was_measured(problem, monkeypatch):
    entry = entry_of(problem, tilings(problem)[1:])
    older = replace(entry, versions=replace(entry.versions, triton="3.1", kernels="others"))
    monkeypatch.setattr(cache, "_shipped", lambda name: Table(name, {older.key: older}))
    cache.reload()
    said = " ".join(explanation(problem, 200).split())
    assert "in the package's table (of triton 3.1 and other kernels)." in said


@pytest.mark.parametrize("device", ["NVIDIA H200", "Intel(R) Xeon(R) CPU @ 2.20GHz", "a/../b"])
def test_file_names_are_plain(device):
    assert set(cache.file_name(device)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    assert "/" not in cache.file_name(device)
    assert ".." not in cache.file_name(device)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match=f"{tmp_path}.*{cache.VARIABLE} names another"):
        cache.check_writable()


def test_tuning_names_the_extra_that_is_missing(monkeypatch):
    monkeypatch.setattr("vicinal.extras.find_spec", lambda module: None)
    with pytest.raises(MissingExtra, match="tuning needs filelock: .*vicinal.tune."):
        cache.check_writable()
    monkeypatch.delenv(cache.VARIABLE)  # the folder is to be found
    with pytest.raises(MissingExtra, match="tuning needs platformdirs and filelock.*vicinal.tune."):
        cache.check_writable()


def test_tables_are_read_without_the_extra(problem, folder):
    """In a process in which neither library can be imported."""
    cache.save(DEVICE, [entry_of(problem, tilings(problem)[1:])])
    script = """
        import sys
        sys.modules["platformdirs"] = sys.modules["filelock"] = None
        from vicinal import dispatch
        from vicinal.bench.cases import Case
        from vicinal.geometry.neighborhood import Neighborhood
        problem = Case("", (9, 12), Neighborhood.of(2, 3).resolve((9, 12)), 2, 8).problem("cpu")
        assert dispatch.plan(problem).forward == dispatch.backend("numba").configs(problem, "forward")[1]
        import os
        from vicinal.tuning import cache
        del os.environ[cache.VARIABLE]
        cache.reload()
        assert cache.folder() is None
        assert dispatch.plan(problem).forward == dispatch.backend("numba").configs(problem, "forward")[0]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


SHIPPED = sorted(Path(cache.__file__).with_name("tables").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_tables_that_are_shipped(path):
    table = Table.from_json(path.read_text())
    assert cache.file_name(table.device) == path.name
    assert path.stat().st_size < 300_000
    assert {entry.direction for entry in table.entries.values()} == {"forward", "backward"}
    for entry in table.entries.values():
        assert entry.timings
        for timed in entry.timings:
            of_settings = {"hopper": hopper_config, "triton": triton_config}[timed.backend].of_settings
            assert settings(of_settings(timed.config)) == timed.config


def test_a_problem_of_the_suite_is_planned_by_the_table_of_an_h200(monkeypatch):
    monkeypatch.setattr(cache, "_name", lambda device: "NVIDIA H200")
    (problem,) = (c.problem("cpu") for c in SUITES["gpu"].cases if "window 13x13" in c.name)
    with standing_for(CARD):
        plan = dispatch.Plan(problem, (dispatch.backend("hopper"), dispatch.backend("triton")))
        for direction, backend, config in (
            ("forward", plan.backend, plan.forward),
            ("backward", plan.gradients, plan.backward),
        ):
            found = cache.look_up(problem, direction)
            assert (found.distance, found.shipped) == (0, True)
            first = found.entry.timings[0]
            assert (backend.name, settings(config)) == (first.backend, first.config)
