"""benchmarks/claims: small runs of both commands, and the recorded results."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from claims import (
    command,
    credit_world,
    report,
    world_anchor,
    world_methods,
    world_smaller_oracle,
    world_weak_data,
)
from claims.estimators import PLAIN, SURPRISAL
from claims.paired import difference

ROOT = Path(__file__).parents[2]
OTHER_STUDIES = {
    world_smaller_oracle: "world_smaller_oracle.json",
    world_weak_data: "world_weak_data.json",
    world_anchor: "world_anchor.json",
}


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


def test_small_runs_of_the_other_studies_share_parts_and_have_the_form_of_their_tables(tmp_path):
    shared = []
    for study, name in OTHER_STUDIES.items():
        study.main(["--quick", "--work", str(tmp_path)])
        found = json.loads((tmp_path / name).read_text())
        assert all(len(lines) > 2 for lines in report.EVIDENCE[name](found).values())
        shared.append({path.name: path.stat().st_mtime_ns for path in (tmp_path / "methods-0").iterdir()})
    assert shared[0] == shared[1] == shared[2]
    assert not [path for path in (tmp_path / "anchor").iterdir() if "0.2" in path.name or "SFT" in path.name]
    world_methods.main(["--quick", "--work", str(tmp_path), "--flipped", "0.25", "--only", "SFT"])
    flipped = json.loads((tmp_path / "world_methods_flipped.json").read_text())
    assert flipped["setting"]["sizes"]["flipped"] == 0.25
    assert (tmp_path / "methods-0.25").is_dir()
    smaller, weak, anchor = (json.loads((tmp_path / name).read_text()) for name in OTHER_STUDIES.values())
    sizes = [each["parameters"] for each in smaller["oracles"].values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == smaller["policy_parameters"]
    assert list(weak["policies"]) == ["after SFT", "after DPO"]
    assert "before training" in weak["policies"]["after DPO"]["SePO 30 %, oracle"]["minus"]
    assert anchor["best"]["SePO 30 %, oracle"]["comparisons"] == 2
    assert anchor["best"]["SFT on chosen"]["comparisons"] == 1


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


@pytest.mark.parametrize(
    ("stop", "proxy", "sign"),
    [
        ("`true`, `margin_per_size`", "margin_over_size", 1),
        ("`accuracy`", "preference_accuracy", 1),
        ("`margin_per_drift`", "margin_over_drift", 1),
        ("`loss`", "dpo_loss", -1),
        ("`margin`", "margin", 1),
        ("`concentration`", "concentration", 1),
    ],
)
def test_the_table_of_metrics_that_stop_an_oracle_has_the_recorded_correlations(recorded, stop, proxy, sign):
    lines = (ROOT / "docs" / "scores.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f"| {stop} |")]
    for suffix in ("", "_clean"):
        found = recorded[f"proxies{suffix}"]["DPO oracles, all betas: auroc"][proxy]
        low, high = sorted(sign * found[end] for end in ("low", "high"))
        picked = recorded[f"picks{suffix}"][proxy]["auroc"]["mean"]
        assert f"{sign * found['mean']:.2f} ({low:.2f} to {high:.2f}); {picked:.3f}" in row


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


def test_the_page_of_evidence_states_what_is_recorded(recorded):
    page = (ROOT / "docs" / "evidence.md").read_text()
    result = json.loads((command.RESULTS / "world_methods.json").read_text())
    policies = result["policies"]
    for name, lines in report.methods_blocks(result).items():
        assert "\n".join([f"<!-- {name}, from the recorded run: make docs -->", *lines, "<!-- end -->"]) in page
    assert len(policies) == 31
    assert all(row["comparisons"] == 6 for row in policies.values())
    assert all(len(row["by_seed"]) == 10 for row in policies.values())
    claims = page.partition("## The experiment")[0]
    oracle, dpo, random = "SePO 30 %, oracle", report.ALL_TOKENS, report.RANDOM_TOKENS
    reference = "Selective-DPO, reference: "
    stronger = [f"{reference}the model after SFT", f"{reference}half-trained by DPO", f"{reference}the DPO oracle"]
    named = [oracle, "SePO, all tokens", dpo, random, *stronger]
    for name in (*named, *(f"{each}, {report.ANCHOR}" for each in (oracle, dpo, random))):
        assert f"{100 * policies[name]['right']['mean']:.1f}" in claims, name
    for name, other in (
        (oracle, dpo), (f"{oracle}, {report.ANCHOR}", f"{dpo}, {report.ANCHOR}"),
        ("T-REG over DPO, oracle's rewards", dpo), ("MinorDPO, all tokens", dpo),
    ):  # fmt: skip
        assert report.percent(policies[name]["minus"][other], sign="+") in claims, name
    minor, plain = (policies[name]["validation"]["0.001"] for name in ("MinorDPO, all tokens", dpo))
    assert f"{100 * minor:.1f} at 1e-3 where DPO has {100 * plain:.1f}" in claims
    strengths = [policies[name]["right"] for name in stronger]
    assert all(weak["high"] < strong["low"] for weak, strong in pairwise(strengths))
    fallen = [dpo, "SimPO, all tokens", "T-REG over DPO, oracle's rewards", "SePO, all tokens", oracle]
    for name in (*fallen, "SePO 30 %, known tokens"):
        shares = policies[name]["validation"]
        assert max(shares, key=shares.get) == "0.0001"
        assert max(shares["0.0003"], shares["0.001"]) < shares["0.0001"] - 0.05
    anchored = [policies[f"{name}, {report.ANCHOR}"]["right"]["mean"] for name in report.CURVE]
    assert anchored == sorted(anchored, reverse=True)
    assert all(row["rate"] == 1e-3 for name, row in policies.items() if name.endswith(report.ANCHOR))
    best = recorded["policies"]["SePO 30 %, best estimator: mean of 4 (SFT on chosen - SFT on rejected)"]
    below = section_of_evidence("With wrong labels")
    assert f"{100 * best['right']['mean']:.1f} %" in below
    assert all(report.percent(best[key]) in below for key in ("minus_all", "minus_random"))
    shares = (round(100 * policies[f"{name}, {report.ANCHOR}"]["right"]["mean"]) for name in (oracle, dpo, random))
    sentence = "has {} % right responses against {} % of DPO and {} % of random tokens with it".format(*shares)
    assert sentence in " ".join((ROOT / "README.md").read_text().split())
    assert policies[oracle]["minus"][dpo]["low"] < 0 < policies[oracle]["minus"][dpo]["high"]


def section_of_evidence(title):
    """Return a section of the page, in one line."""
    page = (ROOT / "docs" / "evidence.md").read_text()
    return " ".join(page.partition(f"## {title}\n")[2].partition("\n## ")[0].split())


def test_what_the_page_states_of_higher_rates_is_recorded():
    result = json.loads((command.RESULTS / "world_anchor.json").read_text())
    page = (ROOT / "docs" / "evidence.md").read_text()
    section = " ".join(page.partition("### Higher rates\n")[2].partition("\n## ")[0].split())
    best, plain = result["best"], json.loads((command.RESULTS / "world_methods.json").read_text())["policies"]
    assert (result["setting"]["weights"], result["setting"]["rates"][-1]) == ([0.2], 3e-3)
    assert "SePO at 30 % is best at 1e-3, and all tokens at 3e-3" in section
    assert all(row["comparisons"] == 5 and len(row["by_seed"]) == 10 for row in best.values())
    for name in ("SePO 30 %, oracle", "SePO 30 %, known tokens", report.RANDOM_TOKENS):
        assert best[name]["rate"] == 1e-3
        assert best[name]["by_seed"] == plain[f"{name}, {report.ANCHOR}"]["by_seed"]
    oracle, everything = best["SePO 30 %, oracle"], (report.ALL_TOKENS, "SePO, all tokens")
    assert all(best[name]["rate"] == 3e-3 for name in everything)
    gains = [oracle["minus"][name] for name in everything]
    text = "better than DPO ({}) and than SePO on all tokens ({})"
    assert text.format(*(report.percent(each, sign="+") for each in gains)) in section
    assert min(each["low"] for each in gains) > 0
    shares = best[report.RANDOM_TOKENS]["validation"]
    assert f"at 3e-3, from {100 * shares['0.001']:.1f} to {100 * shares['0.003']:.1f}." in section


def test_what_the_page_states_of_wrong_labels_is_recorded():
    result = json.loads((command.RESULTS / "world_methods_flipped.json").read_text())
    right = json.loads((command.RESULTS / "world_methods.json").read_text())["policies"]
    section, policies = section_of_evidence("With wrong labels"), result["policies"]
    assert result["setting"]["sizes"]["flipped"] == 0.3333
    assert all(row["comparisons"] == 6 and len(row["by_seed"]) == 10 for row in policies.values())
    assert set(report.FLIPPED) <= set(policies)
    auroc = result["oracle"]["the DPO oracle"]["held_out"]
    assert f"is {sum(auroc) / 10:.2f} ({min(auroc):.2f} to {max(auroc):.2f} by seed)" in section
    dpo, random, oracle, known, minor = report.ALL_TOKENS, report.RANDOM_TOKENS, *(
        "SePO 30 %, oracle", "SePO 30 %, known tokens", "MinorDPO, all tokens"
    )  # fmt: skip
    share = {name: f"{100 * row['right']['mean']:.1f}" for name, row in policies.items()}
    before = sum(result["starts"].values()) / 10
    assert f"{share[dpo]} and {share['SePO, all tokens']}, after {100 * before:.0f} before training" in section
    assert f"SFT on chosen ({share['SFT on chosen']}) and MinorDPO ({share[minor]}) are better" in section
    assert min(policies[name]["minus"][dpo]["low"] for name in ("SFT on chosen", minor)) > 0
    oracle_with, dpo_with, random_with, known_with = (
        f"{name}, {report.ANCHOR}" for name in (oracle, dpo, random, known)
    )
    gains = [report.percent(policies[oracle_with]["minus"][name], sign="+") for name in (dpo_with, random_with)]
    assert f"tokens have {share[oracle_with]}: {gains[0]} points more than DPO with it ({share[dpo_with]})" in section
    assert f"and {gains[1]} more than random tokens with it ({share[random_with]})" in section
    assert min(policies[oracle_with]["minus"][name]["low"] for name in (dpo_with, random_with)) > 0
    levels = [share[f"SePO 30 %, credit of AUROC {level}, {report.ANCHOR}"] for level in (0.6, 0.7, 0.8, 0.9)]
    assert f"Known tokens have {share[known_with]}" in section
    assert "{} at 0.6, {} at 0.7, {} at 0.8, {} at 0.9".format(*levels) in section
    assert [float(each) for each in levels] == sorted(map(float, levels))
    claim = (ROOT / "docs" / "evidence.md").read_text().partition("where labels are wrong")[2].partition("\n")[0]
    assert f"{share[oracle_with]} against {share[dpo_with]} of DPO ({gains[0]})" in claim
    assert f"{share[random_with]} of random tokens ({gains[1]})" in claim
    shares = (f"{100 * policies[name]['right']['mean']:.0f}" for name in (oracle_with, dpo_with, random_with))
    sentence = "{} % against {} and {} % if a third of the labels is wrong".format(*shares)
    assert sentence in " ".join((ROOT / "README.md").read_text().split())
    own = policies[oracle]["minus"]
    differences = [report.percent(own[name], sign="+") for name in (dpo, random)]
    assert f"has {share[oracle]} and cannot be told from DPO ({differences[0]})" in section
    assert f"from random tokens ({differences[1]})" in section
    assert all(own[name]["low"] < 0 < own[name]["high"] for name in (dpo, random))
    assert f"{share[known]}, and {100 * right[known]['right']['mean']:.1f} with right ones" in section
    noisy = policies["SePO 30 %, credit of AUROC 0.6"]
    differences = [noisy["minus"][name] for name in (dpo, random)]
    assert "({} and {})".format(*(report.percent(each, sign="+") for each in differences)) in section
    assert min(each["low"] for each in differences) > 0
    assert difference(noisy["by_seed"], policies[oracle]["by_seed"])["low"] > 0
    assert f"noise of 0.6 is better than the oracle of {sum(auroc) / 10:.2f}." in section
    fewer = json.loads((command.RESULTS / "credit_world.json").read_text())
    counts = [fewer["setting"][name] for name in ("policy_pairs", "oracle_pairs")]
    assert "({} for policies, {} for oracles".format(*counts) in section
    assert f"the oracle's AUROC is {fewer['estimators'][PLAIN]['auroc']['mean']:.2f}" in section


def test_what_the_page_states_of_smaller_oracles_is_recorded():
    result = json.loads((command.RESULTS / "world_smaller_oracle.json").read_text())
    section, policies = section_of_evidence("A smaller oracle"), result["policies"]
    claim = (ROOT / "docs" / "evidence.md").read_text().partition("a smaller oracle selects for")[2].partition("\n")[0]
    assert all(row["comparisons"] == 4 and len(row["by_seed"]) == 10 for row in policies.values())
    setting = result["setting"]
    assert (
        "rate of three ({}) has".format(", ".join(f"{each:.0e}".replace("-0", "-") for each in setting["rates"]))
        in section
    )
    assert f"on {setting['policies']['sizes']['validation']} validation pairs" in section
    assert (min(setting["policy_rates"]), max(setting["policy_rates"])) == (1e-4, 1e-3)
    assert "the best of four rates (1e-4 to 1e-3)" in section
    same, small, smallest = result["oracles"].values()
    assert same["parameters"] == result["policy_parameters"]
    assert f"of {same['parameters']:,} parameters" in section
    assert round(same["parameters"] / small["parameters"]) == 7
    assert 80 <= same["parameters"] / smallest["parameters"] < 85
    named = [f"SePO 30 %, oracle of {each['parameters']:,} parameters, {report.ANCHOR}" for each in (small, smallest)]
    small_row, smallest_row = (policies[name] for name in named)
    same_size, everything, random = (
        f"{name}, {report.ANCHOR}" for name in ("SePO 30 %, oracle", "SePO, all tokens", report.RANDOM_TOKENS)
    )
    means = [100 * policies[name]["right"]["mean"] for name in (named[0], same_size, everything, random)]
    text = "{:.1f} against {:.1f} of one of the policy's size, {:.1f} of all tokens and {:.1f} of random ones"
    assert text.format(*means) in claim
    assert report.percent(smallest_row["right"]) in claim
    for other, better in ((everything, True), (random, True), (same_size, False)):
        gain = small_row["minus"][other]
        assert f"({report.percent(gain, sign='+')})" in section
        assert gain["low"] > 0 if better else gain["high"] < 0
    for other in (everything, random):
        assert smallest_row["minus"][other]["low"] < 0 < smallest_row["minus"][other]["high"]
    means = [sum(each["credit"]["held_out"]) / 10 for each in (same, small)]
    assert abs(means[0] - means[1]) < 0.005
    right = list(smallest["right"].values())
    assert f"is right in {100 * sum(right) / 10:.1f} % of its own responses" in section
    worst, *others = sorted(smallest["credit"]["held_out"])
    assert f"in nine seeds (AUROC {others[0]:.2f} to {others[-1]:.2f}), and none in one ({worst:.2f})" in section
    share = smallest_row["by_seed"][smallest["credit"]["held_out"].index(worst)]
    assert f"ends at {100 * share:.1f} %" in section
    for name in (name.removesuffix(f", {report.ANCHOR}") for name in named):
        differences = policies[name]["minus"]
        assert differences["SePO, all tokens"]["low"] < 0
        assert differences[report.RANDOM_TOKENS]["high"] < 0
    assert policies["SePO 30 %, oracle"]["minus"][report.RANDOM_TOKENS]["high"] < 0


def test_what_the_page_states_of_seconds_is_recorded():
    section = section_of_evidence("Equal steps and equal seconds")
    result = json.loads((ROOT / "benchmarks" / "results" / "whole_cost-hh_harmless-x86_64.json").read_text())
    costs, setting = result["costs"], result["setting"]
    assert f"on {100 * setting['share']:.0f} % of {setting['pairs']:,} pairs" in section
    own, host = costs["dpo"], costs["host_dpo"]
    once = own["oracle"] + own["scoring"]
    assert f"SePO takes {own['sepo']:,.0f} s and one by DPO {own['dpo']:,.0f} s" in section
    assert f"by LLaMA-Factory's DPO {host['dpo']:,.0f} s); oracle and scores take {once:,.0f} s" in section
    assert f"takes {(once + own['sepo']) / own['dpo']:.1f} times as long as one by DPO" in section
    assert f"tokens {(once + own['sepo']) / own['sepo']:.1f}." in section
    assert own["paid_after_runs"] == 5
    assert "From five policies on" in section


@pytest.fixture(scope="module")
def smollm2():
    return json.loads((command.RESULTS / "smollm2_methods.json").read_text())


def test_what_the_page_states_of_smollm2_is_recorded(smollm2):
    section, policies = section_of_evidence("On SmolLM2-135M"), smollm2["policies"]
    assert "python benchmarks/claims/smollm2_methods.py " in section
    assert len(policies) == 7
    assert all(row["comparisons"] == 3 and len(row["by_seed"]) == 5 for row in policies.values())
    assert set(smollm2["setting"]["seeds"]).isdisjoint({smollm2["setting"]["tuning_seed"]})
    samples = smollm2["samples"]
    assert f"in {samples['tokens']:.0f} tokens with free wordings" in section
    assert f"{smollm2['pairs']['invitations_pairs']['pairs']} pairs of the model's own samples" in section
    wrong = [f"{samples[f'wrong_facts_of_{side}']:.1f}" for side in ("chosen", "rejected")]
    assert f"{wrong[0]} of six facts are wrong in chosen responses, {wrong[1]} in rejected ones" in section
    auroc = [f"{smollm2['oracle'][name]['mean']:.3f}" for name in ("oracle", "surprisal")]
    assert f"AUROC on other pairs is {auroc[0]} (surprisal {auroc[1]})" in section
    share = {name: f"{100 * row['right']['mean']:.1f}" for name, row in policies.items()}
    again = smollm2["replication"]
    assert all(len(row["by_seed"]) == 5 and row["rate"] == policies[name]["rate"] for name, row in again.items())

    def gain(name, other, found=policies):
        return report.percent(found[name]["minus"][other]["right"], sign="+")

    minus = {other: found["right"]["low"] for other, found in policies["sepo_ftx"]["minus"].items()}
    text = "has {} % right responses, {} points more than SePO on random tokens and {} more than SFT on chosen"
    assert text.format(share["sepo_ftx"], *(gain("sepo_ftx", name) for name in ("sepo_random_ftx", "sft"))) in section
    assert min(minus["sepo_random_ftx"], minus["sft"], minus["sepo"]) > 0
    assert f"({share['dpo_ftx']}) the difference cannot be told from 0: {gain('sepo_ftx', 'dpo_ftx')}." in section
    text = "has {} and {}: {}.".format(
        *(f"{100 * again[name]['right']['mean']:.1f}" for name in ("sepo_ftx", "dpo_ftx")),
        gain("sepo_ftx", "dpo_ftx", again),
    )
    assert text in section
    assert minus["dpo_ftx"] < 0 > again["sepo_ftx"]["minus"]["dpo_ftx"]["right"]["low"]
    assert f"gains {gain('dpo_ftx', 'dpo')} for DPO and {gain('sepo_ftx', 'sepo')} for SePO" in section
    assert policies["dpo_ftx"]["minus"]["dpo"]["right"]["low"] > 0
    text = "SePO has {}, random tokens {} and DPO {} % right responses at their best rates, and none is better than SFT"
    assert text.format(*(share[name] for name in ("sepo", "sepo_random", "dpo"))) in section
    assert f"SFT on chosen ({share['sft']})" in section
    assert all(
        policies["sft"]["right"]["mean"] > policies[name]["right"]["mean"] for name in ("sepo", "sepo_random", "dpo")
    )


def test_what_the_readme_and_the_table_of_claims_state_of_smollm2_is_recorded(smollm2):
    policies, again = smollm2["policies"], smollm2["replication"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    shares = [f"{100 * policies[name]['right']['mean']:.0f}" for name in ("sepo_ftx", "sepo_random_ftx", "dpo_ftx")]
    text = "On SmolLM2-135M it has {} % against {} % of random tokens and {} % of DPO with it".format(*shares)
    shares = [f"{100 * again[name]['right']['mean']:.0f}" for name in ("sepo_ftx", "dpo_ftx")]
    assert f"{text}, which five more seeds did not confirm for DPO ({shares[0]} and {shares[1]} %;" in readme
    claims = (ROOT / "docs" / "evidence.md").read_text().partition("## The experiment")[0]
    exact = {name: f"{100 * row['right']['mean']:.1f}" for name, row in policies.items()}
    gains = [report.percent(found["sepo_ftx"]["minus"]["dpo_ftx"]["right"], sign="+") for found in (policies, again)]
    text = "{} against {} of DPO with it ({}; in five more seeds {})"
    assert text.format(exact["sepo_ftx"], exact["dpo_ftx"], *gains) in claims
    plain = report.percent(policies["sepo"]["minus"]["sepo_random"]["right"], sign="+")
    assert f"{exact['sepo_ftx']} against {exact['sepo_random_ftx']}; not seen without, {plain}" in claims
    assert policies["sepo"]["minus"]["sepo_random"]["right"]["low"] < 0


def test_what_the_page_states_of_weak_data_is_recorded():
    result = json.loads((command.RESULTS / "world_weak_data.json").read_text())
    section, policies, tuned = section_of_evidence("Weak data"), *result["policies"].values()
    assert all(row["comparisons"] == 3 for name, row in policies.items() if row["rate"] is not None)
    assert all(len(row["by_seed"]) == 10 for row in (*policies.values(), *tuned.values()))

    def mean(values):
        return sum(values) / len(values)

    weak, (own, small) = result["weak"], result["oracles"].values()
    ratio = own["parameters"] / small["parameters"]
    assert 7 < ratio < 8
    assert f"right in {100 * mean(weak['right'].values()):.1f} % of its responses" in section
    assert f"with {mean(weak['wrong_of_chosen']):.1f} wrong tokens of eleven in chosen responses" in section
    assert f"and {mean(weak['wrong_of_rejected']):.1f} in rejected ones" in section
    assert f"(AUROC {mean(own['credit']['held_out']):.2f})" in section
    assert f"the weak model ({mean(small['credit']['held_out']):.2f})" in section
    dpo, random, oracle = report.ALL_TOKENS, report.RANDOM_TOKENS, "SePO 30 %, oracle"
    share = {name: f"{100 * row['right']['mean']:.1f}" for name, row in policies.items()}
    held = f"{oracle}, {report.ANCHOR}"
    gains = [policies[held]["minus"][f"{name}, {report.ANCHOR}"] for name in (dpo, random)]
    assert gains[0]["high"] < 0 < gains[1]["low"]
    text = "has {}, SePO on the oracle's with `pref_ftx` {}, behind DPO with it ({}) and before random tokens ({})"
    assert text.format(share[dpo], share[held], *(report.percent(each, sign="+") for each in gains)) in section
    assert f"({share['SFT on chosen']}, from {share['before training']} before)" in section
    assert f"DPO has {share[f'{dpo}, {report.ANCHOR}']} with it" in section
    chosen = [f"{100 * mean(each):.0f} %" for each in (own["wrong_of_selected"], result["wrong_of_random"])]
    assert "({} of the selected ones, {} of random ones)".format(*chosen) in section
    after = [f"{100 * tuned[name]['right']['mean']:.1f}" for name in ("before training", dpo, oracle, held)]
    text = "({}), DPO on the weak pairs reaches {}, and SePO on the oracle's tokens {}, with `pref_ftx` {}."
    assert text.format(*after) in section
    claim = (ROOT / "docs" / "evidence.md").read_text().partition("weak data train a strong")[2].partition("\n")[0]
    assert f"{share[dpo]} for DPO on all tokens, {share[held]} for SePO with `pref_ftx`" in claim
