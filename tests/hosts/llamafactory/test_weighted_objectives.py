"""Token weights, sums of objectives and their selections in real runs of the host's trainer on tiny models."""

import json
import math
import shutil
from pathlib import Path

import pytest

from sepo.report.reading import read_subject
from sepo.runs.token_samples_reader import read_record
from tests.support import tiny
from tests.support.recipes import adapter, logged, same_weights, sepo_recipe, sepo_train
from tests.support.tolerance import LOG_PROB

pytestmark = pytest.mark.host

NO_ORACLE = {"oracle_model": None, "oracle_base_model": None, "token_scores_dir": None}
SIDES = ("chosen", "rejected")


def training(output):
    return [entry for entry in logged(output) if "loss" in entry]


def recipe_of(world, output, objective, **overrides):
    without = {} if objective in ("tgdpo", "tis_dpo") else NO_ORACLE
    values = {"objective": objective, "max_steps": 2, "learning_rate": 3e-2, **without}
    return sepo_recipe(world, output, **{**values, **overrides})


def spans(row, side, words, weight):
    text = row[side]["value"]
    return [{"start": text.index(words), "end": text.index(words) + len(words), "weight": weight}]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a directory with data sets of spans: of weights 0 to 1 in responses, and with one above 1."""
    folder = tmp_path_factory.mktemp("data")
    info = {}
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    for name, weight in (("critical", -0.75), ("outside", 1.5)):
        rows = tiny.pairs(24)
        for row in rows:
            row["chosen_spans"] = []
            row["rejected_spans"] = spans(row, "rejected", "wings", weight)
        (folder / f"{name}.json").write_text(json.dumps(rows))
        info[name] = {"file_name": f"{name}.json", "formatting": "sharegpt", "ranking": True, "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("objective", ["confpo", "tgdpo", "d2po", "ld_dpo", "sampo", "tis_dpo", "critical_dpo"])
def test_two_steps_of_every_objective(world, data, tmp_path, objective):
    named = {"dataset": "critical", "dataset_dir": str(data)} if objective == "critical_dpo" else {}
    evaluated = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 2}
    sepo_train(recipe_of(world, tmp_path / "out", objective, **named, **evaluated), tmp_path)
    first, second = training(tmp_path / "out")
    (evaluation,) = (entry for entry in logged(tmp_path / "out") if "eval_loss" in entry)
    for entry in (first, second, evaluation):
        assert all(math.isfinite(value) for value in entry.values())
    record = json.loads((tmp_path / "out" / "sepo_settings.json").read_text())
    assert record["objective"] == objective
    weighs = objective not in ("confpo", "sampo")
    assert ("select/chosen_effective" in first) == ("eval_select/chosen_effective" in evaluation) == weighs
    if objective == "confpo":
        assert 0 < first["select/chosen_ratio"] < 1
        assert first["objective/empty_pair"] == 0
        return
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the policy is its reference
    assert second["loss"] != pytest.approx(math.log(2), abs=1e-4)
    if objective == "sampo":  # as many tokens of both responses
        assert min(first["select/chosen_ratio"], first["select/rejected_ratio"]) < 1
        for pair in read_subject(tmp_path / "out").pairs:
            numbers = [getattr(pair, side).selected.sum() for side in SIDES]
            assert numbers[0] == numbers[1] == min(getattr(pair, side).counted for side in SIDES)
        return
    assert first["select/chosen_ratio"] == first["select/rejected_ratio"] == 1


def test_a_sum_in_a_recipe_and_on_the_command_line(world, tmp_path):
    """The same sum as a mapping of YAML, as an override, and as overrides of its parts."""
    factors = {"dpo": 0.8, "orpo": 0.2, "sft": 0.1}
    recipe = recipe_of(world, tmp_path / "mapping", factors)
    sepo_train(recipe, tmp_path)
    expected = training(tmp_path / "mapping")
    for entry in expected:
        parts = sum(factor * entry[f"objective/{name}_loss"] for name, factor in factors.items())
        assert entry["loss"] == pytest.approx(parts, rel=1e-5)
    assert expected[0]["objective/dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)
    record = json.loads((tmp_path / "mapping" / "sepo_settings.json").read_text())
    assert record["objective"] == "dpo+orpo+sft"

    plain = {**recipe, "objective": "dpo"}
    words = ["objective={dpo: 0.8, orpo: 0.2, sft: 0.1}", f"output_dir={tmp_path / 'override'}"]
    sepo_train(plain, tmp_path, *words, name="override.yaml")
    assert training(tmp_path / "override") == expected
    words = ["objective.orpo=0.2", "objective.sft=0.1", f"output_dir={tmp_path / 'parts'}"]
    sepo_train({**plain, "objective": {"dpo": 0.8}}, tmp_path, *words, name="parts.yaml")
    assert training(tmp_path / "parts") == expected
    written = (tmp_path / "mapping" / "_sepo_recipe.json").read_text()
    assert json.loads(written)["recipe"]["objective"] in (factors, "dpo: 0.8, orpo: 0.2, sft: 0.1")


def test_ld_alpha_is_a_key_of_the_weight_and_is_not_passed_on(world, tmp_path):
    """With alpha 1 every token counts alike, as in DPO; the host, whose versions may lack the key, does not get it."""
    from sepo.hosts.llamafactory.recipe import host_keys
    from sepo.recipe.resolve import resolve

    recipe = recipe_of(world, tmp_path / "out", "ld_dpo", ld_alpha=1)
    for known in (host_keys(), tuple(name for name in host_keys() if name != "ld_alpha")):
        host, settings = resolve(recipe, host_keys=known)
        assert "ld_alpha" not in host
        assert settings.method.token_weight.alpha == 1.0
    sepo_train(recipe, tmp_path)
    sepo_train(recipe_of(world, tmp_path / "dpo", "dpo"), tmp_path, name="dpo.yaml")
    for entry, other in zip(training(tmp_path / "out"), training(tmp_path / "dpo"), strict=True):
        assert entry["loss"] == pytest.approx(other["loss"], abs=LOG_PROB)


def test_sampo_selects_by_the_seed(world, tmp_path):
    runs = {}
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        recipe = recipe_of(world, tmp_path / name, "sampo", seed=seed, max_steps=4)
        sepo_train(recipe, tmp_path, name=f"{name}.yaml")
        runs[name] = {
            (pair.row, side): getattr(pair, side).selected.tolist()
            for pair in read_subject(tmp_path / name).pairs for side in SIDES
        }  # fmt: skip
    assert runs["one"] == runs["again"]
    shared = runs["one"].keys() & runs["other"].keys()
    assert any(runs["one"][key] != runs["other"][key] for key in shared)


def test_a_resumed_run_ends_with_the_same_weights(world, tmp_path):
    """Weights from stored scores, with gradient accumulation and the reference as the starting policy."""
    keys = {"save_steps": 2, "max_steps": 4, "gradient_accumulation_steps": 2}
    recipe = recipe_of(world, tmp_path / "out", "tgdpo", **keys)
    sepo_train(recipe, tmp_path)
    shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    sepo_train({**recipe, "output_dir": str(tmp_path / "again")}, tmp_path, name="again.yaml")
    assert same_weights(adapter(tmp_path / "again"), adapter(tmp_path / "out"))
    assert training(tmp_path / "again")[-1]["loss"] == training(tmp_path / "out")[-1]["loss"]


def test_weights_and_selections_of_an_oracle_share_their_store(world, tmp_path):
    """Stage sepo, tgdpo, tis_dpo and a sum with the same oracle find the scores of the first run."""
    sepo_train(sepo_recipe(world, tmp_path / "sepo", max_steps=1), tmp_path, name="sepo.yaml")
    (store,) = [path for path in (tmp_path / "scores").iterdir() if (path / "manifest.json").is_file()]
    for name, objective, weight in (
        ("tgdpo", "tgdpo", None), ("tis", "tis_dpo", None), ("sum", {"tis_dpo": 1.0, "orpo": 0.1}, "importance"),
    ):  # fmt: skip
        recipe = sepo_recipe(world, tmp_path / name, objective=objective, token_weight=weight, max_steps=1)
        done = sepo_train(recipe, tmp_path, name=f"{name}.yaml")
        assert f"token scores of train found in {store}: nothing to score" in done.stdout
        record = json.loads((tmp_path / name / "sepo_settings.json").read_text())
        assert [Path(path).name for path in record["token_scores"].values()] == [store.name]


def test_the_weights_of_a_run_are_those_of_the_stored_scores(world, tmp_path):
    """``select/*_effective`` of TGDPO at the first step, from the scores in the run's record of its pairs."""
    recipe = recipe_of(world, tmp_path / "out", "tgdpo", tgdpo_alpha=2.0, pref_beta=0.5)
    sepo_train(recipe, tmp_path)
    first, _ = training(tmp_path / "out")
    pairs = [pair for pair in read_record(tmp_path / "out")[0] if pair.step == 1]
    assert len(pairs) == 2
    for side, sign in zip(SIDES, (1, -1), strict=True):
        numbers = []
        for pair in pairs:
            response = getattr(pair, side)
            kept = [score for score, selected in zip(response.scores, response.selected, strict=True) if selected]
            weights = [1 + sign * 2.0 * 0.5 * score for score in kept]
            numbers.append(sum(weights) ** 2 / sum(weight**2 for weight in weights))
        assert first[f"select/{side}_effective"] == pytest.approx(sum(numbers) / 2, rel=1e-4)


def test_a_score_without_a_weight_is_refused_before_the_policy_is_loaded(world, data, tmp_path):
    recipe = recipe_of(world, tmp_path / "out", "critical_dpo", dataset="outside", dataset_dir=str(data))
    refused = sepo_train(recipe, tmp_path, expect=2)
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("sepo: error:")]
    assert "its rejected response, which starts with 'It has" in line
    assert "has the score -1.5 at its token" in line
    assert "expected a number in [0, 1]" in line
    assert "spans become negative scores of rejected responses" in line
    assert "Loading weights" not in refused.stderr
    assert "trainable params" not in refused.stdout


@pytest.mark.parametrize("objective", ["tgdpo", "ld_dpo", "sum"])
def test_a_precomputed_reference_gives_the_same_losses(world, tmp_path, objective):
    """With several device batches per step, and ld_dpo with tokens that are not computed."""
    more = {
        "tgdpo": {},
        "ld_dpo": {"ld_alpha": 0},
        "sum": {"token_weight": "position"},
    }
    chosen = {"d2po": 0.8, "orpo": 0.2} if objective == "sum" else objective
    recipe = recipe_of(world, tmp_path / "live", chosen, ref_model=str(world / "base"), **more[objective])
    sepo_train(recipe, tmp_path)
    stored = {"output_dir": str(tmp_path / "stored"), "token_scores_dir": str(tmp_path / "scores")}
    sepo_train({**recipe, **stored, "ref_precompute": True}, tmp_path, name="stored.yaml")
    for live, other in zip(training(tmp_path / "live"), training(tmp_path / "stored"), strict=True):
        assert live["loss"] != pytest.approx(math.log(2), abs=1e-3)
        for name in ("loss", "rewards/margins", "kl/chosen", "select/tokens"):
            assert other[name] == pytest.approx(live[name], abs=20 * LOG_PROB), name
