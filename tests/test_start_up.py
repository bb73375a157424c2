"""The benchmark of start-up reads the seconds that commands print, and ends a run before its first step."""

import json
import sys
from pathlib import Path

import pytest

from sepo.errors import SepoError
from sepo.timing import Timing
from tests.support.recipes import run, sepo_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def start_up(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import start_up

    return start_up


def test_the_seconds_of_a_command(start_up):
    lines = [
        "nothing is wrong",
        "timing: 9.50 s (CPU 8.25 s); imports 7.00 s (CPU 6.00 s), own work 2.50 s (CPU 2.25 s)",
    ]
    assert start_up.seconds_of("\n".join([*lines, "  imports: torch 7.00 s (CPU 6.00 s)"])) == {
        "total": 9.5, "total_cpu": 8.25, "imports": 7.0, "imports_cpu": 6.0, "own": 2.5, "own_cpu": 2.25,
    }  # fmt: skip
    assert set(start_up.seconds_of("\n".join(Timing().lines()))) == {
        "total", "total_cpu", "imports", "imports_cpu", "own", "own_cpu",
    }  # fmt: skip
    with pytest.raises(SepoError, match=r"printed no line of seconds; its last: nothing is wrong$"):
        start_up.seconds_of("nothing is wrong")


def test_medians_of_the_rounds(start_up):
    rounds = [{"own": 3.0, "total": 9.0}, {"own": 1.0, "total": 7.0}, {"own": 2.0, "total": 12.0}]
    assert start_up.summary(rounds) == {"median": {"own": 2.0, "total": 9.0}, "rounds": rounds}


@pytest.mark.parametrize("words", [["--cases", "doctor,nothing"], ["--rounds", "0"]])
def test_invalid_options_are_one_line(start_up, words):
    with pytest.raises(SystemExit, match="some of doctor,plan_fits,plan_does_not_fit,run, and at least 1 are expected"):
        start_up.main(words)


@pytest.mark.host
def test_a_run_ends_before_its_first_step(world, tmp_path, start_up):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(sepo_recipe(world, tmp_path / "out")))
    done = run([sys.executable, BENCHMARKS / "start_up.py", "--child", recipe], cwd=tmp_path, fresh=True)
    assert start_up.seconds_of(done.stdout)["own"] > 0
    assert "before training: rows and scores" in done.stderr + done.stdout
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
