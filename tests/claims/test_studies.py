"""benchmarks/claims: small runs of both commands, and the recorded results."""

import json
from pathlib import Path

import pytest
from claims import command, credit_world, report, world_methods
from claims.estimators import PLAIN, SURPRISAL

ROOT = Path(__file__).parents[2]


def test_a_small_study_of_credit_has_the_form_of_the_recorded_one_and_resumes(tmp_path, capsys):
    credit_world.main(["--quick", "--work", str(tmp_path)])
    first = json.loads((tmp_path / "credit_world.json").read_text())
    parts = sorted((tmp_path / "credit").iterdir())
    written = {path.name: path.stat().st_mtime_ns for path in parts}
    credit_world.main(["--quick", "--work", str(tmp_path)])
    assert {path.name: path.stat().st_mtime_ns for path in sorted((tmp_path / "credit").iterdir())} == written
    assert json.loads((tmp_path / "credit_world.json").read_text()) == first
    recorded = json.loads((command.RESULTS / "credit_world.json").read_text())
    assert set(first) == set(recorded)
    assert set(first["estimators"]) == set(recorded["estimators"])
    assert len(first["policies"]) == len(recorded["policies"])
    assert set(report.credit_blocks(first)) == set(report.credit_blocks(recorded))


def test_a_small_comparison_of_methods_runs(tmp_path):
    world_methods.main(
        ["--quick", "--work", str(tmp_path), "--only", "SePO 30 %, oracle", "DPO, all", "Selective", "T-REG"]
    )
    found = json.loads((tmp_path / "world_methods.json").read_text())
    assert len(found["policies"]) == 9
    assert all(len(row["by_seed"]) == 2 for row in found["policies"].values())
    assert "DPO, all tokens" in found["policies"]["SePO 30 %, oracle"]["minus"]


@pytest.fixture(scope="module")
def recorded():
    return json.loads((command.RESULTS / "credit_world.json").read_text())


def test_the_recorded_world_is_as_hard_as_documented(recorded):
    assert recorded["setting"]["seeds"] == len(recorded["starts"]) == 10
    assert all(0.05 <= share <= 0.6 for share in recorded["starts"].values())
    plain = recorded["estimators"][PLAIN]
    assert 0.70 <= plain["auroc"]["mean"] <= 0.85
    assert recorded["estimators"][SURPRISAL]["auroc"]["mean"] < 0.65


def test_estimators_above_the_plain_oracle_and_surprisal(recorded):
    above = {
        name
        for name, row in recorded["estimators"].items()
        if name not in (PLAIN, SURPRISAL) and row["minus_plain"]["low"] > 0 and row["minus_surprisal"]["low"] > 0
    }
    assert above == {"SFT on chosen - SFT on rejected", "mean of 4 (SFT on chosen - SFT on rejected)"}


def test_what_the_page_states_of_proxies_and_policies(recorded):
    flipped, right = (recorded[name]["DPO oracles, all betas: auroc"] for name in ("proxies", "proxies_clean"))
    for proxy in ("margin_over_spread", "preference_accuracy"):
        assert min(flipped[proxy]["low"], right[proxy]["low"]) > 0.6
    assert right["dpo_loss"]["low"] > 0 > right["margin"]["high"]
    assert all(own["concentration"]["low"] < 0 < own["concentration"]["high"] for own in (flipped, right))
    best, dpo = (
        next(row for name, row in recorded["policies"].items() if name.startswith(f"{objective} 30 %, best"))
        for objective in ("SePO", "DPO")
    )
    assert min(row["low"] for row in (best["minus_all"], best["minus_random"], dpo["minus_random"])) > 0
    assert all(row["minus_plain"]["low"] < 0 < row["minus_plain"]["high"] for row in (best, dpo))
    assert dpo["minus_all"]["low"] < 0
    pairs = zip(best["by_seed"], recorded["policies"]["SePO 30 %, plain oracle"]["by_seed"], strict=True)
    assert sum(one > other for one, other in pairs) == 8


def test_what_the_page_states_of_the_likelihood_of_chosen_responses(recorded):
    weighted = [row for row in recorded["likelihood"] if row["pref_ftx"] == 1]
    assert len(weighted) == 6
    assert all(row["minus_none"]["mean"] > 0 for row in weighted)
    assert all(row["minus_none"]["low"] > 0 for row in weighted if row["rate"] == 1e-3)
    none = {(row["rate"], row["epochs"]): row["auroc"]["mean"] for row in recorded["likelihood"] if not row["pref_ftx"]}
    for cell, estimators in recorded["grid"].items():
        rate, epochs = cell.split(", ")
        assert abs(none[float(rate), int(epochs)] - estimators[PLAIN]["held_out"]) < 1e-3


def test_the_page_names_the_commands_and_its_tables_are_the_recorded_ones(recorded):
    page = (ROOT / "docs" / "credit_estimators.md").read_text()
    assert "python benchmarks/claims/credit_world.py" in page
    for name, lines in report.credit_blocks(recorded).items():
        assert "\n".join(lines) in page, name
