"""Scores of a run before training: against noise, and on the rows of `credit_data`."""

import json
import logging

import numpy as np
import pytest
from datasets import Dataset

from sepo.credit import run as credit_run
from sepo.credit.data import checked_pairs
from sepo.credit.in_run import MarkedRows, measured, report_scores
from sepo.credit.scored import CreditRequest
from sepo.credit.scorers import CreditModels
from sepo.errors import SepoError
from sepo.hosts.llamafactory.credit import LlamaFactoryCredit
from sepo.hosts.llamafactory.recipe import check_recipe, get_train_args, settings_of
from sepo.hosts.llamafactory.workflow import prepared_data
from sepo.objectives import resolve_method
from sepo.recipe.model_specs import ModelSpec, OracleSpec
from sepo.recipe.resolve import resolve, unread_keys
from sepo.runs.log_reader import read_log
from sepo.score_store import ScoreStore
from sepo.scoring.chance import scores_against_chance, store_chance
from sepo.text.chat_encoding import ReadResponse
from sepo.text.projection import TokenSpans
from tests.support.recipes import sepo_recipe

METHOD = resolve_method("sepo")


def scored(pairs=200, *, finds=True, scorer="oracle", seed=0):
    """Return rows with scores that are noise, or that mark three tokens of rejected responses."""
    draws = np.random.default_rng(seed)
    rows = {"chosen_scores": [], "rejected_scores": []}
    for _ in range(pairs):
        for side in rows.values():
            side.append(draws.normal(size=40).astype(np.float32))
        if finds:
            rows["rejected_scores"][-1][5:8] -= 6
    return {"train_dataset": Dataset.from_dict(rows)}


def lines(caplog, level):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_scores_like_noise_are_one_warning_and_others_none(caplog, tmp_path):
    with caplog.at_level(logging.INFO, "sepo"):
        report_scores(scored(finds=False), METHOD, folder=tmp_path)
        (warning,) = lines(caplog, logging.WARNING)
        caplog.clear()
        report_scores(scored(), METHOD, folder=tmp_path)
    assert warning.startswith("the scores of train cannot be told from noise: the selected 30% of")
    assert "sepo credit" in warning
    assert "\n" not in warning
    assert not lines(caplog, logging.WARNING)
    (line,) = lines(caplog, logging.INFO)
    assert line.startswith("the scores of train against noise: ")
    kept = [json.loads(text) for text in (tmp_path / "sepo_log.jsonl").read_text().splitlines()]
    assert [entry["scores"]["train"]["noise"] for entry in kept] == [True, False]
    assert read_log(tmp_path).scores["scores"]["train"]["pairs"] == 200


def test_each_data_set_has_its_own_comparison_and_scorers_without_a_common_scale_none():
    both = {"train_dataset": scored(finds=False)["train_dataset"], "eval_dataset": {"a": scored()["train_dataset"]}}
    found = scores_against_chance(both, METHOD)
    assert {name: each.is_noise for name, each in found.items()} == {"train": True, "eval a": False}
    assert not scores_against_chance(scored(), resolve_method("sepo", token_scorer="random"))
    assert not scores_against_chance({"train_dataset": Dataset.from_dict({"chosen_labels": [[1]]})}, METHOD)
    rewards = scored()["train_dataset"].rename_columns(
        {f"{side}_scores": f"{side}_token_rewards" for side in ("chosen", "rejected")}
    )
    assert not scores_against_chance({"train_dataset": rewards}, resolve_method("dpo_reg"))["train"].is_noise


def test_tokens_that_may_not_be_selected_are_not_compared():
    rows = scored()["train_dataset"]
    flags = [[index not in (5, 6, 7) for index in range(40)]] * len(rows)
    left = rows.add_column("chosen_candidates", flags).add_column("rejected_candidates", flags)
    assert not scores_against_chance({"train_dataset": rows}, METHOD)["train"].is_noise
    assert scores_against_chance({"train_dataset": left}, METHOD)["train"].is_noise


def test_a_store_has_the_comparison_of_its_rows(tmp_path):
    rows = scored()["train_dataset"]
    columns = ("chosen_scores", "rejected_scores")

    def store(identity, names=columns):
        opened = ScoreStore.open(root=tmp_path, identity=identity, rows=200, columns=names, shard_rows=64)
        opened.fill(
            lambda start, stop: {
                name: [np.asarray(row, np.float32) for row in rows[start:stop][column]]
                for name, column in zip(names, columns, strict=True)
            }
        )
        return opened

    in_run = scores_against_chance({"train_dataset": rows}, METHOD)["train"]
    found = store_chance(store({"scorer": "oracle"}))
    assert found == in_run
    assert not found.is_noise
    assert store_chance(store({"scorer": "policy_ref"})) is None  # its highest scores are selected in both responses
    assert store_chance(store({"scorer": "reference"}, ("chosen_ref_logps", "rejected_ref_logps"))) is None


def marked(auroc_of, responses=60):
    """Return rows with one marked token of ten, and their scores."""
    draws = np.random.default_rng(1)
    row = {"prompt": "Count.", "chosen": "a b", "rejected": "abcdefghij"}
    pairs = checked_pairs(
        [{**row, "rejected_error_spans": [{"start": i % 10, "end": i % 10 + 1}]} for i in range(responses)], name="rows"
    )
    spans = TokenSpans(tuple((place, place + 1) for place in range(10)), None)
    reads = [ReadResponse(list(range(12)), 2, spans)] * responses
    scores = [draws.normal(size=10) for _ in pairs]
    for index, each in enumerate(scores):
        each[index % 10] -= auroc_of
    rows = Dataset.from_dict({"rejected_scores": scores})
    return MarkedRows("rows.json", pairs, reads, rows), rows


def test_an_oracle_that_misses_the_marked_errors_is_one_warning(caplog, tmp_path):
    with caplog.at_level(logging.INFO, "sepo"):
        for shift in (0.0, 3.0):
            rows, scores = marked(shift)
            report_scores({}, METHOD, marked=rows, scored=scores, folder=tmp_path)
    (warning,), (line,) = lines(caplog, logging.WARNING), lines(caplog, logging.INFO)
    assert warning.startswith("the scores do not find the errors of credit_data: AUROC 0.")
    assert line.startswith("the scores of credit_data: AUROC 0.9")
    assert line.endswith("of finding the marked tokens of 60 rejected responses of rows.json, 0.5 for noise.")
    assert read_log(tmp_path).scores["credit"]["auroc"]["low"] > 0.5


def test_a_scorer_that_selects_the_highest_scores_is_measured_by_them():
    rows, scores = marked(3.0)
    highest = resolve_method("dpo", token_scorer="policy_ref", chosen_ratio=0.3, rejected_ratio=0.3)
    assert measured(rows, scores, METHOD).auroc.value == pytest.approx(1 - measured(rows, scores, highest).auroc.value)


@pytest.mark.host
@pytest.mark.parametrize("scorer", ["oracle", "contrastive"])
def test_a_run_measures_its_scorer_as_sepo_credit_does(world, marked_world, marked_pairs, tmp_path, scorer):
    keys = {} if scorer == "oracle" else {"oracle_model": None, "oracle_base_model": None, "token_scorer": scorer,
                                          "treg_eval_model": str(world / "base")}  # fmt: skip
    recipe = sepo_recipe(world, tmp_path / "run", credit_data=str(marked_world / "marked.json"), **keys)
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(recipe)
    settings = settings_of(finetuning_args)
    args = {"model_args": model_args, "data_args": data_args, "training_args": training_args}
    data = prepared_data(settings, **args)
    found = measured(data.marked, data.scored, settings.method)
    oracle = OracleSpec(ModelSpec(str(world / "oracle")), ModelSpec(str(world / "base")))
    models = CreditModels(ModelSpec(str(world / "base")), oracle)
    request = CreditRequest("rows", [scorer], models, template="chatml", cutoff_len=128)
    own = credit_run.measure(marked_pairs, request, open_host=LlamaFactoryCredit)["scorers"][scorer]["auroc"]
    assert (found.auroc.value, found.auroc.low) == (pytest.approx(own["mean"]), pytest.approx(own["low"]))
    assert "credit_data" not in data.stores[{"oracle": "token_scores"}.get(scorer, "token_reward_scores")]
    assert "marked" not in str(data.datasets["train_dataset"].column_names)
    again = prepared_data(settings, **args, find_only=True)  # the rows of the run alone
    assert again.marked is None


@pytest.mark.host
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"credit_data": "nowhere.json"}, r"credit_data: 'nowhere.json' is not a file"),
        ({"credit_data": "prmbench"}, r"credit_data: prmbench needs its file: prmbench=PATH"),
        ({"credit_data": "fluent", "token_scorer": "confidence", "oracle_model": None, "oracle_base_model": None},
         "credit_data is fluent, but token_scorer is confidence, which scores no rows before training"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(world, tmp_path, changes, message):
    with pytest.raises(SepoError, match=message):
        check_recipe(sepo_recipe(world, tmp_path / "run", **changes))


def test_a_damaged_row_is_named(tmp_path, world, marked_rows):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([*marked_rows[:2], {**marked_rows[2], "rejected_error_spans": [{"start": 0}]}]))
    with pytest.raises(SepoError, match=r"^credit_data: row 2 of .*rows.json: rejected_error_spans\[0\] is "):
        check_recipe(sepo_recipe(world, tmp_path / "run", credit_data=str(file)))


def test_the_record_of_a_run_has_the_key_only_if_it_is_set():
    recipe = {"stage": "sepo", "oracle_model": "o", "oracle_base_model": "b", "model_name_or_path": "m"}
    _, plain = resolve(recipe, host_keys=("model_name_or_path", "stage"))
    _, named = resolve({**recipe, "credit_data": "fluent"}, host_keys=("model_name_or_path", "stage"))
    assert {**plain.as_dict(), "credit_data": "fluent"} == named.as_dict() != plain.as_dict()


def test_variants_of_a_comparison_without_stored_scores_do_not_read_the_shared_key():
    recipe = {"stage": "sepo", "oracle_model": "o", "oracle_base_model": "b", "credit_data": "fluent"}
    assert unread_keys(recipe, ["credit_data"]) == ()
    assert unread_keys({**recipe, "token_scorer": "contrastive"}, ["credit_data"]) == ()
    live = {"stage": "selective_dpo", "credit_data": "fluent"}
    assert unread_keys(live, ["credit_data"]) == ("credit_data",)
