"""The scoring benchmarks at a small scale: they run, their methods agree, and errors are one line."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.recipes import run as run_command

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name, *words, **options):
    return run_command([sys.executable, BENCHMARKS / name, *words], cwd=BENCHMARKS, **options)


def test_scoring_ways_agree(tmp_path):
    output = tmp_path / "result.json"
    done = run("scoring.py", "--shape", "tiny", "--rows", 4, "--rounds", 2, "--no-memory", "--output", output)
    result = json.loads(output.read_text())
    assert [way["name"] for way in result["ways"]] == ["authors", "ours", "ours, one by one"]
    for way in result["ways"]:
        assert way["largest_difference"] < 1e-4
        assert way["tokens_per_second"] > 0
        assert way["name"] in done.stdout
        assert len(way["seconds"]) == 2
    assert result["ways"][0]["ratio_to_authors"] == 1


def test_memory_is_recorded_during_scoring(tmp_path):
    output = tmp_path / "result.json"
    run("scoring_memory.py", "--rows", 2000, "--output", output, fresh=True)
    result = json.loads(output.read_text())
    steps = [point["step"] for point in result["points"]]
    assert steps[:2] == ["rows written", "empty rows dropped"]
    assert steps[-3:] == ["joined", "summed up", "read again"]
    assert "scored" in steps
    assert result["growth_bytes"] < 96 * 2**20


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("scoring.py", ["--rows", 0], "--rows is 0; at least 1 is expected"),
        ("scoring_memory.py", ["--rows", 10], "--rows is 10; at least 1000 are expected"),
    ],
)
def test_errors_are_one_line(name, words, message):
    error = run(name, *words, expect=1).stderr
    assert message in error
    assert error.count("\n") == 1
