"""Constants are found again from timings that were made with them."""

import random
from dataclasses import replace
from math import exp

import pytest
import torch

from vicinal.backends.gpu.hardware import ARCHITECTURES, Gpu, standing_for
from vicinal.backends.hopper import estimate as hopper
from vicinal.backends.hopper.tilings import backward_configs, forward_configs, one_pass_configs
from vicinal.backends.protocol import settings
from vicinal.backends.triton import estimate as triton
from vicinal.backends.triton.tilings import tilings
from vicinal.bench.planning import random_problem
from vicinal.cli import main
from vicinal.tuning import cache
from vicinal.tuning.fit import ESTIMATES, fit, quality
from vicinal.tuning.timings import Measured, append

CARD = Gpu(ARCHITECTURES["sm_90"], 132)
TRUE = {  # what the card of these timings does otherwise
    "triton": {"warpgroup_flops": 2400.0, "l2_bytes": 40.0, "step_latency": 900.0, "clock": 1.3e9, "key_value": 9.0},
    "hopper": {"forward_step_d": 2.5, "backward_tile": 1500.0, "backward_step_d": 7.0, "one_pass_step_d": 10.0},
}


def configs(backend, problem, direction):
    if backend == "triton":
        return tilings(problem, direction)[:4]
    if direction == "forward":
        return forward_configs(problem)[:3]
    return [*backward_configs(problem)[:2], *one_pass_configs(problem)[:2]]


def made(backend, noise=0.0, outliers=0.0, count=20):
    """Timings of a card whose constants are `TRUE`."""
    rng, rows = random.Random(1), []
    card = Gpu(CARD.architecture, CARD.processors, tuple((f"{backend}.{n}", v) for n, v in TRUE[backend].items()))
    about = {"device": "card", "gpu": ("sm_90", 132), "versions": cache.versions(), "samples": 3}
    while len(rows) < 6 * count:
        problem = random_problem(rng, (torch.bfloat16,))
        with standing_for(card):
            for direction in ("forward", "backward"):
                for config in configs(backend, problem, direction):
                    seconds = ESTIMATES[backend].seconds(problem, direction, config) * exp(rng.gauss(0, noise))
                    seconds *= 3 if rng.random() < outliers else 1
                    own = {"problem": problem, "direction": direction, "backend": backend, "config": settings(config)}
                    rows.append(Measured(seconds=(seconds,) * 3, **own, **about))
    return rows


@pytest.mark.parametrize("backend", ESTIMATES)
def test_known_constants_are_found(backend):
    rows = made(backend)
    found = fit(rows, backend)
    assert found.before.error > 0.05
    assert found.after.error < 0.01
    assert found.held_out[1].error < 0.5 * found.held_out[0].error
    assert found.after.timings == len(rows)
    for name, value in TRUE[backend].items():
        assert found.constants[f"{backend}.{name}"] == pytest.approx(value, rel=0.01), name


def test_noise_and_outliers():
    """Of 3% and, one timing in twenty, three times as long."""
    true = made("triton")
    found = fit(made("triton", noise=0.03, outliers=0.05), "triton")
    constants = {name.removeprefix("triton."): value for name, value in found.constants.items()}
    assert quality(true, "triton", constants).error < 0.03


@pytest.mark.parametrize("backend", ESTIMATES)
def test_where_estimates_are_right_nothing_changes(backend, monkeypatch):
    monkeypatch.setitem(TRUE, backend, {})
    usual = ESTIMATES[backend].Constants()._asdict()
    found = fit(made(backend, count=15), backend).constants
    assert found == {f"{backend}.{name}": pytest.approx(value, rel=1e-3) for name, value in usual.items()}


def test_the_choice_is_judged_by_what_was_measured():
    rows = sorted((r for r in made("triton", count=1) if r.direction == "forward"), key=lambda r: r.median)
    assert rows[0].median < rows[-1].median  # and so estimated, but the other one is measured to be faster
    rows = [replace(rows[0], seconds=(3e-3,) * 3), replace(rows[-1], seconds=(2e-3,) * 3)]
    found = quality(rows, "triton", TRUE["triton"])
    assert (found.timings, found.problems, found.lost) == (2, 1, (pytest.approx(0.5), pytest.approx(0.5)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "another"}, "must be of one device, got .'another', 'card'."),
        ({"gpu": None}, "must be of one device"),
        (None, "triton has 24 constants, which takes 72 timings, got 1"),
    ],
)
def test_timings_that_cannot_be_fitted_are_told(change, words):
    rows = made("triton", count=1)
    rows = rows[:1] if change is None else [replace(rows[0], **change), *rows[1:]]
    rows = rows if change is None else rows * 20
    with pytest.raises(ValueError, match=words):
        fit(rows, "triton")
    with pytest.raises(ValueError, match="backend must be one of triton, hopper, got 'numba'"):
        fit(rows, "numba")


def test_the_command_keeps_constants_for_the_device(tmp_path, capsys):
    path = tmp_path / "timings.jsonl.gz"
    append(path, made("hopper", count=20))
    assert main(["tune", "--fit", str(path)]) == 0
    said = capsys.readouterr().out
    assert "hopper before: half of 1" in said
    assert f"kept for card in {cache.path_of('card')}" in said
    kept = cache.fitted_to("card")
    assert kept["hopper.forward_step_d"] == pytest.approx(2.5, rel=0.1)
    assert set(kept) == {f"hopper.{name}" for name in hopper.Constants._fields}
    fitted = Gpu(CARD.architecture, 132, tuple(kept.items()))
    assert hopper.fitted(fitted).forward_step_d == kept["hopper.forward_step_d"]
    assert triton.fitted(fitted) == triton.Constants()


def test_the_command_tells_what_it_cannot_read(tmp_path, capsys):
    assert main(["tune", "--fit", str(tmp_path / "none")]) == 2
    assert "--fit: " in capsys.readouterr().err
    append(tmp_path / "a", [replace(row, backend="numba") for row in made("hopper", count=1)])
    assert main(["tune", "--fit", str(tmp_path / "a")]) == 2
    assert "has no timings of triton or hopper" in capsys.readouterr().err
