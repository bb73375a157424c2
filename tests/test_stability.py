"""benchmarks/stability.py runs, and its recorded result has the same form."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.recipes import run

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "stability.py"
RECORDED = sorted((ROOT / "benchmarks" / "results").glob("stability-*.json"))
assert RECORDED


def checked(result):
    """Check the form of a result, and that its summary and verdict follow from its runs."""
    assert set(result) == {"machine", "setting", "unit", "reference", "verdict", "summary", "runs"}
    assert {"processor", "torch", "sepo", "python"} <= set(result["machine"])
    setting = result["setting"]
    assert len(result["reference"]) == setting["seeds"]
    rates = setting["learning_rates"]
    assert len(result["runs"]) == 2 * len(rates) * setting["seeds"]
    for one in result["runs"]:
        first, last = one["curve"][0], one["curve"][-1]
        assert last["step"] == setting["epochs"] * (setting["pairs"] // setting["batch"])
        for data in ("trained", "held_out"):
            assert first[data]["chosen"] == first[data]["rejected"] == 0.0  # the policy starts as the reference
    ends = {}
    for row in result["summary"]:
        values = [
            one["curve"][-1][row["data"]]
            for one in result["runs"]
            if (one["objective"], one["learning_rate"]) == (row["objective"], row["learning_rate"])
        ]
        for name in ("chosen", "rejected", "accuracy", "answered_right"):
            assert row[name]["mean"] == pytest.approx(sum(value[name] for value in values) / len(values))
        ends[row["data"], row["learning_rate"], row["objective"]] = row["chosen"]["mean"]
    for data, found in result["verdict"].items():
        falls = [rate for rate in sorted(rates) if ends[data, rate, "dpo"] < 0]
        assert found["dpo_falls_at"] == falls
        assert found["minor_dpo_stays_up_at"] == [rate for rate in falls if ends[data, rate, "minor_dpo"] >= 0]
        assert set(found["in_every_seed_at"]) <= set(found["minor_dpo_stays_up_at"])


def test_a_small_run_has_the_form_of_the_real_one(tmp_path):
    small = "--learning-rates 1e-4 1e-3 --seeds 1 --pairs 16 --batch 8 --epochs 2 --digits 3 --sft-steps 10"
    command = [sys.executable, str(SCRIPT), *small.split(), "--output", str(tmp_path / "out.json")]
    done = run(command, cwd=tmp_path)
    checked(json.loads((tmp_path / "out.json").read_text()))
    assert "minor_dpo" in done.stdout
    assert "DPO ends below the reference at" in done.stdout
    assert (tmp_path / "out.png").stat().st_size > 1000 or "no plot" in done.stdout


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_the_recorded_result_is_complete_and_quoted_in_the_documentation(path):
    result = json.loads(path.read_text())
    checked(result)
    assert path.with_suffix(".png").is_file()
    assert result["setting"]["seeds"] >= 3
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert str(path.relative_to(ROOT)) in page
    ends = {(row["learning_rate"], row["objective"]): row for row in result["summary"] if row["data"] == "held_out"}
    assert all(ends[1e-3, objective]["chosen"]["mean"] > 0 for objective in ("dpo", "minor_dpo"))
    for rate in (3e-3, 1e-2):
        for objective in ("dpo", "minor_dpo"):
            row = ends[rate, objective]
            assert f"{row['chosen']['mean']:+.2f}" in page, (rate, objective)
            assert f"{row['answered_right']['mean']:.0%}" in page, (rate, objective)
