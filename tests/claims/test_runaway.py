"""benchmarks/claims/runaway_world.py: statistics of runs that end badly, a small run, and the recorded result."""

import json
from pathlib import Path

import pytest
import torch
from claims import command, report, runaway_world
from claims.runaway import LOGGED, STATISTICS, Watch, bad_runs, computed, highest, lowest_bound, separation
from claims.training import Run
from claims.world import Pairs

from sepo.objectives import resolve_method
from sepo.runs.runaway import BOUND, FIRST_PAIRS, PAIRS

ROOT = Path(__file__).parents[2]


def pairs_of(count=2, tokens=4):
    shape = (count, 2, tokens)
    return Pairs(
        torch.zeros(count, 3, dtype=torch.long), torch.zeros(shape, dtype=torch.long), torch.zeros(shape).bool()
    )


def test_the_computed_tokens_are_those_of_the_step():
    pairs = pairs_of()
    scores = torch.tensor([[[4.0, 3, 2, 1], [4, 3, 2, 1]]]).expand(2, -1, -1)
    sepo = resolve_method("sepo", chosen_ratio=0.5, rejected_ratio=0.25)
    selected = computed(Run(pairs, sepo, 1e-3, 1, scores=scores))
    assert selected[0].tolist() == [[True, True, False, False], [False, False, False, True]]
    anchored = computed(Run(pairs, sepo, 1e-3, 1, scores=scores, chosen_nll_weight=0.2))
    assert anchored[0].tolist() == [[True] * 4, [False, False, False, True]]
    assert computed(Run(pairs, resolve_method("dpo"), 1e-3, 1)).all()


def test_a_step_is_recorded_over_the_computed_tokens():
    scores = torch.tensor([[[4.0, 3, 2, 1], [4, 3, 2, 1]]]).expand(2, -1, -1)
    run = Run(pairs_of(), resolve_method("sepo", chosen_ratio=0.5, rejected_ratio=0.25), 1e-3, 1, scores=scores)
    start = torch.full((1, 2, 2, 4), -1.0)
    logps = torch.tensor([[[[-2.0, -2, 0, 0], [0, 0, 0, -5]], [[0, -1.5, -9, -9], [0, 0, 0, -7]]]])
    watch = Watch([run], start)
    watch(logps, torch.tensor([[0, 1]]))
    found = {name: values[0][0] for name, values in watch.by_name().items()}
    assert found == pytest.approx(
        {
            "chosen": -1.375, "rejected": -6.0, "chosen_change": -0.375, "rejected_change": -5.0, "falling": 0.5,
            "chosen_all": (-1 - 1 + 1 + 1 + 1 - 0.5 - 8 - 8) / 8,
        }
    )  # fmt: skip


def test_the_highest_values_by_part_of_the_training():
    steps = {
        "chosen": [-1.0, -1.5, -3.0, -2.0], "rejected": [-2.0, -3.0, -6.0, -8.0],
        "chosen_change": [0.0, -0.25, -0.5, -1.0], "rejected_change": [0.0, -0.5, -1.0, -3.0],
        "chosen_all": [0.5, -0.5, 0.0, 0.0], "falling": [0.1, 0.9, 0.2, 0.3],
    }  # fmt: skip
    parts = ("0.25", "0.5", "1")
    found = {name: [each[part] for part in parts] for name, each in highest(steps, referenced=True, batch=64).items()}
    assert list(found.values()) == [[0, 0.25, 1], [0, 0.5, 3], [0, 0.25, 2], [-0.5, 0.5, 0.5], [0.1, 0.9, 0.9]]
    without = highest(steps, referenced=False, batch=64)  # since the first batch
    assert [without[LOGGED][part] for part in parts] == [0, 0.5, 2]
    assert [without["growth of the margin, computed tokens"][part] for part in parts] == [0, 0.5, 5]
    halves = highest(steps, referenced=True, batch=32)  # means over two steps
    assert [halves[LOGGED][part] for part in parts] == [0, 0.125, 0.75]
    assert halves["share of chosen responses that fell"]["1"] == pytest.approx(0.55)


def test_a_run_ends_badly_against_lower_rates_and_the_start():
    right = {1e-3: [0.42, 0.35, 0.0], 1e-4: [0.5, 0.2, 0.1]}
    assert bad_runs(right, [0.1, 0.4, 0.0]) == {1e-4: [False, True, False], 1e-3: [False, False, False]}
    assert bad_runs({1e-4: [0.5], 1e-3: [0.3]}, [0.1]) == {1e-4: [False], 1e-3: [True]}


def test_a_bound_is_the_lowest_that_warns_of_few_good_runs():
    rows = [(True, {"0.25": 0.0, "0.5": 2.0, "1": 3.0}), (True, {"0.25": 0.0, "0.5": 0.0, "1": 0.5})]
    rows += [(False, {"0.25": 0.0, "0.5": 0.0, "1": 1.2})] + 99 * [(False, {"0.25": 0.0, "0.5": 0.0, "1": 0.0})]
    rows += 2 * [(False, {"0.25": 0.0, "0.5": 0.0, "1": 0.3})]
    assert lowest_bound(rows, (0.25, 0.5, 1.0, 2.0)) == 0.5
    found = separation(rows, 0.5)
    assert (found["bad"], found["good"], found["warned"]) == (2, 102, {"0.25": 0.0, "0.5": 0.5, "1": 0.5})
    assert found["false"] == pytest.approx(1 / 102)
    assert separation([], 0.5) == {"bad": 0, "good": 0, "warned": dict.fromkeys(found["warned"]), "false": None}


def test_a_small_study_runs_and_resumes(tmp_path):
    runaway_world.main(["--quick", "--work", str(tmp_path)])
    first = json.loads((tmp_path / "runaway_world.json").read_text())
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runaway").iterdir()}
    runaway_world.main(["--quick", "--work", str(tmp_path)])
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runaway").iterdir()} == written
    assert json.loads((tmp_path / "runaway_world.json").read_text()) == first
    recorded = json.loads((command.RESULTS / "runaway_world.json").read_text())
    assert set(first) == set(recorded)
    assert list(first["runs"]) == list(recorded["runs"])
    assert list(first["statistics"]) == list(recorded["statistics"]) == list(STATISTICS)
    assert set(report.runaway_blocks(first)) == set(report.runaway_blocks(recorded))


@pytest.fixture(scope="module")
def recorded():
    return json.loads((command.RESULTS / "runaway_world.json").read_text())


def test_the_warning_has_the_bound_of_the_recorded_study(recorded):
    own = recorded["statistics"][LOGGED]
    assert own["bound"] == BOUND
    assert max(own[half]["false"] for half in ("chosen_on", "judged_on")) <= 0.02
    assert min(own[half]["warned"]["1"] for half in ("chosen_on", "judged_on")) >= 0.6


def test_the_page_states_what_is_recorded(recorded):
    page = (ROOT / "docs" / "evidence.md").read_text()
    for name, lines in report.runaway_blocks(recorded).items():
        assert "\n".join([f"<!-- {name}, from the recorded run: make docs -->", *lines, "<!-- end -->"]) in page
    section = " ".join(page.partition("## A run that runs away")[2].partition("\n## ")[0].split())
    assert sum(len(run["right"]) for own in recorded["runs"].values() for run in own.values()) == 840
    own = recorded["statistics"][LOGGED]["judged_on"]
    half, end, good = (f"{100 * share:.0f} %" for share in (own["warned"]["0.5"], own["warned"]["1"], own["false"]))
    assert f"{half} of the bad runs are warned of in the first half of their steps, {end} before they end" in section
    assert f"{good} of the others" in section
    assert f"over the latest {PAIRS} pairs or more" in section
    assert f"of the first {FIRST_PAIRS} logged pairs or more" in section
    oracle = recorded["policies"]["SePO 30 %, oracle"]
    assert f"misses {100 * (1 - oracle['warned']['1']):.0f} % of the bad runs of SePO on the oracle's tokens" in section
    for name, policy in recorded["policies"].items():
        if "pref_ftx" in name or name.startswith(("MinorDPO", "Selective")):
            assert policy["bad"] == policy["false"] == 0
    every = recorded["statistics"]["fall of all chosen tokens"]["judged_on"]["warned"]["1"]
    assert f"the fall of all chosen tokens would (first table, {100 * every:.0f} % in all)" in section
    anchored = [own for name, own in recorded["runs"].items() if "pref_ftx" in name]
    falls = [fall["1"] for own in anchored for run in own.values() for fall in run["fall"]]
    assert (len(falls), sum(fall > BOUND for fall in falls)) == (120, 1)
    for name in ("fall of the computed rejected tokens", "growth of the margin, computed tokens"):
        other = recorded["statistics"][name]["judged_on"]
        assert other["warned"]["1"] < own["warned"]["1"] / 1.5
        assert other["false"] > own["false"]
