"""Whole measurements with tiny models: the scores equal those of training, in its templates and tokens."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sepo.credit import run, scored
from sepo.credit.run import SCHEMA
from sepo.credit.scored import CreditRequest
from sepo.credit.scorers import CreditModels
from sepo.errors import SepoError
from sepo.hosts.llamafactory.credit import LlamaFactoryCredit
from sepo.recipe.model_specs import ModelSpec, OracleSpec
from tests.support.recipes import sepo_recipe
from tests.support.tolerance import LOG_PROB, SCORE

RECIPE = {"dataset": "marked", "template": "chatml", "use_cpu": True}


@pytest.fixture(scope="module")
def models(world):
    oracle = OracleSpec(ModelSpec(str(world / "oracle")), ModelSpec(str(world / "base")))
    return CreditModels(ModelSpec(str(world / "base")), oracle, ModelSpec(str(world / "policy")))


def measure(pairs, request):
    return run.measure(pairs, request, open_host=LlamaFactoryCredit)


def score_pairs(pairs, request):
    return scored.score_pairs(pairs, request, open_host=LlamaFactoryCredit)


def request(models, *scorers, **options):
    return CreditRequest("rows", scorers, models, **{"template": "chatml", "cutoff_len": 128, **options})


@pytest.fixture(scope="module")
def trained(world, marked_world, tmp_path_factory):
    """The stores that a run computes before training, by content."""
    from sepo.hosts.llamafactory.recipe import get_train_args, settings_of
    from sepo.hosts.llamafactory.workflow import prepared_data

    out = tmp_path_factory.mktemp("trained")
    recipe = sepo_recipe(world, out / "run", **RECIPE, dataset_dir=str(marked_world), treg_alpha=0.1,
                         treg_eval_model=str(world / "base"))  # fmt: skip
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(recipe)
    data = prepared_data(
        settings_of(finetuning_args), model_args=model_args, data_args=data_args, training_args=training_args
    )
    return {what: stores["train"] for what, stores in data.stores.items()}


def test_oracle_and_prompts_score_as_before_training(models, marked_pairs, trained):
    """Low is wrong for both, so the scores of a store are used as they are."""
    oracle, rewards = (f"store:{trained[what]}" for what in ("token_scores", "token_reward_scores"))
    found = score_pairs(marked_pairs, request(models, "oracle", oracle, "contrastive", rewards)).scores
    for live, stored in (("oracle", oracle), ("contrastive", rewards)):
        for one, other in zip(found[live][0], found[stored][0], strict=True):
            np.testing.assert_allclose(one, other, atol=SCORE)
            assert np.abs(one).max() > 1e-3


def test_each_scorer_equals_the_models_log_probabilities(models, marked_pairs, world):
    """Slow twin: one row at a time from full logits, in the chat template, which is ChatML in both."""
    found = score_pairs(marked_pairs, request(models, "oracle", "surprisal", "policy_ref", "confidence", "probability"))
    plain = score_pairs(marked_pairs, request(models, "surprisal", template=None))
    words = AutoTokenizer.from_pretrained(world / "base")
    logps = {name: [] for name in ("base", "oracle", "policy")}
    for name, rows in logps.items():
        model = AutoModelForCausalLM.from_pretrained(world / name).double().eval()
        for pair in marked_pairs:
            turns = [{"role": "system", "content": pair.system}] * bool(pair.system) + list(pair.messages)
            prompt = words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            start = words.encode(prompt)
            answer = words.encode(f"{pair.rejected}<|im_end|>\n")
            ids = torch.tensor([[*start, *answer]])
            with torch.no_grad():
                every = model(ids).logits[0].log_softmax(-1)
            rows.append(every[len(start) - 1 : -1].gather(1, ids[0, len(start) :, None])[:, 0].numpy())
    for index in range(len(marked_pairs)):
        base, oracle, policy = (logps[name][index] for name in ("base", "oracle", "policy"))
        for name, expected in (
            ("surprisal", base), ("confidence", base), ("probability", np.exp(base)),
            ("oracle", oracle - base), ("policy_ref", policy - base),
        ):  # fmt: skip
            np.testing.assert_allclose(found.scores[name][0][index], expected, atol=SCORE)
        np.testing.assert_allclose(plain.scores["surprisal"][0][index], base, atol=LOG_PROB)


def full_log_probs(pair, words, folder):
    """Return the log-probabilities [T, V] at a response's tokens and the ids [T], one row from full logits."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    turns = [{"role": "system", "content": pair.system}] * bool(pair.system) + list(pair.messages)
    start = words.encode(words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    answer = words.encode(f"{pair.rejected}<|im_end|>\n")
    with torch.no_grad():
        every = model(torch.tensor([[*start, *answer]])).logits[0].log_softmax(-1)
    return every[len(start) - 1 : -1], torch.tensor(answer)


def test_estimators_equal_full_distributions_and_the_scores_of_a_run(
    models, marked_pairs, marked_world, world, tmp_path
):
    """Centered scores and the mean of two oracles, against float64; step means and damping as before training."""
    from sepo.hosts.llamafactory.recipe import get_train_args, settings_of
    from sepo.hosts.llamafactory.workflow import prepared_data
    from tests.support import tiny

    tiny.save_model(tmp_path / "second", seed=7, noise_over=world / "base")
    second = OracleSpec(ModelSpec(str(tmp_path / "second")), ModelSpec(str(world / "base")))
    both = CreditModels(models.model, models.oracle, None, (second,))
    names = ("oracle", "oracle_centered", "oracle_step_mean", "oracle_first_error", "surprisal_centered")
    found = score_pairs(marked_pairs, request(both, *names)).scores
    words = AutoTokenizer.from_pretrained(world / "base")
    for index, pair in enumerate(marked_pairs[:4]):
        (base, ids), *trained = (
            full_log_probs(pair, words, folder) for folder in (world / "base", world / "oracle", tmp_path / "second")
        )
        at = [every.gather(1, ids[:, None])[:, 0] for every in (base, *(each for each, _ in trained))]
        ratio = (at[1] + at[2]) / 2 - at[0]
        kl = sum((base.exp() * (base - each)).sum(-1) for each, _ in trained) / 2
        entropy = -(base.exp() * base).sum(-1)
        for name, expected in (
            ("oracle", ratio),
            ("oracle_centered", ratio + kl),
            ("surprisal_centered", at[0] + entropy),
        ):
            np.testing.assert_allclose(found[name][0][index], expected, atol=SCORE)
    for made in ("centered", "step_mean", "first_error"):
        members = [{"oracle_model": each.oracle.model} for each in both.oracles]
        recipe = sepo_recipe(world, tmp_path / "run", **RECIPE, dataset_dir=str(marked_world), oracle_model=None,
                             oracles=members, oracle_scores=made)  # fmt: skip
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(recipe)
        data = prepared_data(
            settings_of(finetuning_args), model_args=model_args, data_args=data_args, training_args=training_args
        )
        stored = score_pairs(marked_pairs, request(models, f"store:{data.stores['token_scores']['train']}")).scores
        for one, other in zip(found[f"oracle_{made}"][0], next(iter(stored.values()))[0], strict=True):
            np.testing.assert_allclose(one, other, atol=SCORE)


def test_results_name_every_oracle(models, marked_pairs, world):
    second = OracleSpec(ModelSpec(str(world / "policy")), ModelSpec(str(world / "base")))
    both = CreditModels(models.model, models.oracle, None, (second,))
    result = measure(marked_pairs, request(both, "oracle", bootstrap=2))
    assert result["models"]["oracle_2"]["model"] == str(world / "policy")
    assert result["models"]["oracle_base_2"] == result["models"]["oracle_base"]


def test_results_have_the_documented_schema(models, marked_pairs):
    result = measure(marked_pairs, request(models, "oracle", "surprisal", "random", bootstrap=20, random_draws=3))
    assert json.loads(json.dumps(result)) == result
    assert result["schema"] == SCHEMA == "sepo.credit/1"
    assert set(result) == {
        "schema", "sepo", "data", "reading", "models", "settings", "best_possible", "scorers", "differences", "levels",
        "seconds",
    }  # fmt: skip
    assert set(result["data"]) == {
        "source", "sha256", "rows", "responses", "left_out", "tokens", "marked_tokens", "preceded", "spans",
        "spans_cut", "languages",
    }  # fmt: skip
    assert result["data"]["spans"] == {"Wrong-Number": 8, "Wrong-Word": 12}
    assert result["reading"] == {
        "template": "chatml", "cutoff_len": 128, "dtype": None, "end_of_turn": "counted",
    }  # fmt: skip
    assert result["models"]["oracle_base"] == result["models"]["model"]
    assert list(result["scorers"]) == ["oracle", "surprisal", "random"]
    measures = {"auroc", "average_precision", "precision", "recall", "first_error", "first_error_auroc"}
    assert result["data"]["preceded"] == 12
    assert set(result["levels"]) == {"span", "step"}
    assert set(result["levels"]["span"]["scorers"]) == set(result["scorers"])
    for of in result["scorers"].values():
        assert set(of) == {*measures, "by_type", "by_language"}
        assert set(of["auroc"]) == {"mean", "low", "high"}
        assert all(0 <= of[name]["low"] <= of[name]["high"] <= 1 for name in measures)
        assert set(of["by_type"]["Wrong-Word"]) == {"responses", "auroc", "average_precision", "recall"}
    assert [(d["first"], d["second"]) for d in result["differences"]] == [
        ("oracle", "surprisal"), ("oracle", "random"), ("surprisal", "random"),
    ]  # fmt: skip
    again = measure(marked_pairs, request(models, "oracle", "surprisal", "random", bootstrap=20, random_draws=3))
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_the_end_of_turn_can_be_excluded(models, marked_pairs):
    whole = measure(marked_pairs, request(models, "random", bootstrap=5, random_draws=2))
    text = measure(marked_pairs, request(models, "random", bootstrap=5, random_draws=2, text_only=True))
    assert whole["data"]["tokens"] == text["data"]["tokens"] + 2 * len(marked_pairs)  # <|im_end|> and a line's end
    assert whole["data"]["marked_tokens"] == text["data"]["marked_tokens"]
    assert text["reading"]["end_of_turn"] == "left out"


def test_random_is_chance(models, marked_pairs):
    result = measure(marked_pairs, request(models, "random", bootstrap=5, random_draws=400))
    assert abs(result["scorers"]["random"]["auroc"]["mean"] - 0.5) < 0.02


def test_truncated_errors_are_counted(models, marked_pairs):
    result = measure(marked_pairs, request(models, "random", bootstrap=5, random_draws=1, cutoff_len=12))
    assert 0 < result["data"]["spans_cut"] <= 20
    assert result["data"]["left_out"]["no_token_marked"] > 0


def test_registered_scorers_are_called_and_their_sign_is_flipped(models, marked_pairs, tmp_path):
    from tests.support.packages import SCORER_EXAMPLE, on_path, write_example

    with on_path(write_example(tmp_path, SCORER_EXAMPLE)):
        found = score_pairs(marked_pairs, request(models, "rarity"))
    counts = {"the": 50_000, "and": 30_000, "is": 20_000, "has": 8_000, "it": 15_000, "a": 25_000}
    lowest = min(float(row.min()) for row in found.scores["rarity"][0])
    assert lowest == pytest.approx(-math.log(max(counts.values())))  # an unknown word matters most
    assert max(float(row.max()) for row in found.scores["rarity"][0]) <= 0


@pytest.mark.parametrize(
    ("scorers", "changes", "message"),
    [
        (["orakel"], {}, "'orakel'.*Did you mean 'oracle'"),
        (["file"], {}, "'file', expected some of"),
        ([], {}, "--scorers is empty"),
        (["random", "random"], {}, "random, random; expected at least one scorer, each once"),
        (["oracle"], {"oracle": None}, "oracle needs an oracle"),
        (["oracle_centered"], {"oracle": None}, "oracle_centered needs an oracle"),
        (["oracle_centred"], {}, "'oracle_centred'.*Did you mean 'oracle_centered'"),
        (["surprisal_centered"], {"model": None}, "surprisal_centered needs a model that scores"),
        (["policy_ref"], {"reference": None}, "policy_ref needs a reference"),
        (["surprisal"], {"model": None}, "surprisal needs a model that scores"),
        (["random"], {"model": None, "oracle": None, "reference": None}, "no model is given"),
        (["store:/nowhere"], {}, "/nowhere is not a score store"),
    ],
)
def test_missing_models_are_reported_before_anything_is_loaded(models, marked_pairs, scorers, changes, message):
    from dataclasses import replace

    with pytest.raises(SepoError, match=message):
        measure(marked_pairs, request(replace(models, **changes), *scorers))


def test_a_store_of_other_rows_or_tokens_is_an_error(models, marked_pairs, trained):
    name = f"store:{trained['token_scores']}"
    with pytest.raises(SepoError, match="scores of 12 rows, but the data has 11"):
        measure(marked_pairs[:11], request(models, name))
    with pytest.raises(SepoError, match=r"row 0 has \d+ scores, but its rejected response has \d+ tokens"):
        measure(marked_pairs, request(models, name, template="alpaca"))


def test_wrong_templates_models_and_tokenizers_are_one_line(models, marked_pairs, world, tmp_path):
    from dataclasses import replace

    from tests.support import foreign, tiny

    with pytest.raises(SepoError, match="--template: Template nope does not exist"):
        measure(marked_pairs, request(models, "surprisal", template="nope"))
    absent = replace(models, model=ModelSpec(str(tmp_path / "absent")))
    with pytest.raises(SepoError, match="absent"):
        measure(marked_pairs, request(absent, "surprisal"))
    tiny.save_model(tmp_path / "foreign", seed=3, words=foreign.metaspace_bpe())
    other = replace(models, reference=ModelSpec(str(tmp_path / "foreign")))
    with pytest.raises(SepoError, match=r"ref_model: .*has another tokenizer"):
        measure(marked_pairs, request(other, "policy_ref"))
