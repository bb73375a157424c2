"""Several oracles, their checkpoints and what is made of their scores, against full logits in float64."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sepo.errors import SepoError
from sepo.hosts.llamafactory.checks import check_models
from sepo.hosts.llamafactory.recipe import get_train_args, settings_of
from sepo.hosts.llamafactory.workflow import prepared_data
from sepo.score_store import ScoreStore
from tests.support import tiny
from tests.support.recipes import sepo_recipe
from tests.support.tolerance import SCORE

SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def oracles(world, tmp_path_factory):
    """Return a directory with a second oracle and a training with checkpoints, each another model."""
    folder = tmp_path_factory.mktemp("oracles")
    tiny.save_model(folder / "second", seed=5, noise_over=world / "base")
    for name, seed in (("trained", 6), ("trained_reversed", 9)):
        for number, step in enumerate((2, 4, 10)):
            tiny.save_model(folder / name / f"checkpoint-{step}", seed=seed + number, noise_over=world / "base")
        (folder / name / "checkpoint-12").mkdir()  # killed before it was written
        tiny.save_model(folder / name / "end", seed=3, noise_over=world / "base")
        for file in (folder / name / "end").iterdir():
            shutil.move(file, folder / name)
    return folder


@pytest.fixture(scope="module")
def scored(world, tmp_path_factory):
    """Return a function that scores the tiny pairs as a run does, with stores in one directory."""
    root = tmp_path_factory.mktemp("scored")

    def score(**keys):
        recipe = sepo_recipe(world, root / "out", token_scores_dir=str(root / "scores"), **keys)
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(recipe)
        settings = settings_of(finetuning_args)
        check_models(recipe, settings)
        return prepared_data(settings, model_args=model_args, data_args=data_args, training_args=training_args)

    score.stores = root / "scores"
    return score


def scores_of(data):
    rows = data.datasets["train_dataset"]
    return {side: [np.array(scores) for scores in rows[f"{side}_scores"]] for side in SIDES}


def by_hand(rows, oracle, base):
    """Return the log-ratios, and the Kullback-Leibler divergence KL(base || oracle), of each response in float64."""
    models = [AutoModelForCausalLM.from_pretrained(name, dtype=torch.float64) for name in (oracle, base)]
    made = {side: [] for side in SIDES}
    for side in SIDES:
        for ids, labels in zip(rows[f"{side}_input_ids"], rows[f"{side}_labels"], strict=True):
            ids, labels = torch.tensor(ids), torch.tensor(labels)
            with torch.no_grad():
                first, second = (model(ids[None]).logits[0, :-1].log_softmax(-1) for model in models)
            ratio = (first - second).gather(1, ids[1:, None])[:, 0]
            kl = (second.exp() * (second - first)).sum(-1)
            kept = labels[1:] != -100
            made[side].append((ratio[kept].numpy(), kl[kept].numpy()))
    return made


def assert_close(found, expected):
    for side in SIDES:
        for scores, wanted in zip(found[side], expected[side], strict=True):
            np.testing.assert_allclose(scores, wanted, rtol=0, atol=SCORE)


def made_of(function, *ratios):
    return {side: [function(*each) for each in zip(*(of[side] for of in ratios), strict=True)] for side in SIDES}


def test_the_mean_of_several_oracles(world, oracles, scored):
    alone = scored()  # the store of the first oracle is found again
    rows = alone.datasets["train_dataset"]
    named = [{"oracle_model": str(world / "oracle")}, {"oracle_model": str(oracles / "second")}]
    data = scored(oracle_model=None, oracles=named)
    ratios = [by_hand(rows, each["oracle_model"], world / "base") for each in named]
    assert_close(scores_of(data), made_of(lambda a, b: (a[0] + b[0]) / 2, *ratios))
    stores = {path.name for path in scored.stores.iterdir() if not path.name.startswith(".")}
    own = Path(alone.stores["token_scores"]["train"]).name
    combined = Path(data.stores["token_scores"]["train"]).name
    assert len(stores) == 3
    assert {own, combined} < stores
    members = ScoreStore.at(scored.stores / combined).manifest.identity["members"]
    assert members[0] == {
        name: value for name, value in ScoreStore.at(scored.stores / own).manifest.identity.items() if name != "rows"
    }
    one = scored(oracle_model=None, oracles=named[:1])  # a mean of one oracle is that oracle, in its own store
    assert one.stores == alone.stores
    assert scored(oracle_model=None, oracles=named).stores == data.stores


def test_a_finished_mean_needs_no_oracle_again(world, oracles, scored, monkeypatch):
    named = [{"oracle_model": str(world / "oracle")}, {"oracle_model": str(oracles / "second")}]
    stores = scored(oracle_model=None, oracles=named).stores
    monkeypatch.setattr("sepo.scoring.oracle.load_scoring_models", lambda *_, **__: pytest.fail("a model is loaded"))
    for path in scored.stores.glob("[0-9a-f]*"):
        if str(path) not in stores["token_scores"].values():
            shutil.rmtree(path)
    assert scored(oracle_model=None, oracles=named).stores == stores


@pytest.mark.parametrize("chunk", [None, 3])
def test_centered_scores_are_the_ratio_without_its_expectation_under_the_base(world, scored, chunk):
    more = {} if chunk is None else {"head_chunk_tokens": chunk, "score_batch_tokens": 100}
    data = scored(oracle_scores="centered", **more)
    if chunk is not None:  # how they are computed is not part of the identity: score them again
        shutil.rmtree(data.stores["token_scores"]["train"])
        data = scored(oracle_scores="centered", **more)
    ratios = by_hand(data.datasets["train_dataset"], world / "oracle", world / "base")
    assert_close(scores_of(data), made_of(lambda a: a[0] + a[1], ratios))
    assert max(kl.max() for _, kl in ratios["chosen"]) > 0.01
    assert scored().stores != data.stores


def test_step_means_and_damped_scores(scored):
    plain, means, damped = (scored(oracle_scores=name) for name in ("ratio", "step_mean", "first_error"))
    ratios = scores_of(plain)
    assert_close(made_of(lambda row: np.array([row.sum()]), scores_of(means)),
                 made_of(lambda row: np.array([row.sum()]), ratios))  # fmt: skip
    assert all(len(set(row.tolist())) < len(row) for row in scores_of(means)["chosen"])
    found = scores_of(damped)
    assert_close({side: found[side] if side == "chosen" else ratios[side] for side in SIDES}, ratios)
    for row, wanted in zip(found["rejected"], ratios["rejected"], strict=True):
        first = int(np.argmax(wanted <= 0.5 * wanted.min()))
        np.testing.assert_allclose(row, wanted * 0.9 ** np.maximum(np.arange(len(row)) - first, 0), atol=1e-6)
    assert len({str(each.stores) for each in (plain, means, damped)}) == 3


@pytest.mark.parametrize("both", [False, True])
def test_the_mean_over_the_last_checkpoints(world, oracles, scored, both):
    base = oracles / "trained_reversed" if both else world / "base"
    keys = {"oracle_model": str(oracles / "trained"), "oracle_base_model": str(base), "oracle_checkpoints": 2}
    data = scored(**keys, **({"oracle_base_checkpoints": True} if both else {}))
    pairs = [(oracles / "trained" / name, base / name if both else base) for name in ("checkpoint-4", "checkpoint-10")]
    ratios = [by_hand(data.datasets["train_dataset"], *pair) for pair in pairs]
    assert_close(scores_of(data), made_of(lambda a, b: (a[0] + b[0]) / 2, *ratios))
    one = scored(**{**keys, "oracle_checkpoints": 1})
    assert_close(
        scores_of(one), made_of(lambda a: a[0], [by_hand(one.datasets["train_dataset"], pairs[1][0], base)][0])
    )


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"oracle_checkpoints": 4}, "oracle_checkpoints is 4, but '.*trained' has 3 checkpoints"),
        ({"oracle_checkpoints": 2, "oracle_base_checkpoints": True}, "base' has no checkpoint-4, which the oracle has"),
    ],
)
def test_missing_checkpoints_are_refused_before_models_load(oracles, scored, keys, words):
    with pytest.raises(SepoError, match=words):
        scored(oracle_model=str(oracles / "trained"), **keys)


def test_checkpoints_of_a_hub_name_are_refused(monkeypatch):
    from sepo.recipe.model_specs import ModelSpec, OracleSet, OracleSpec
    from sepo.scoring.oracle_members import oracle_members

    named = OracleSet((OracleSpec(ModelSpec("acme/oracle"), ModelSpec("acme/base")),), checkpoints=2)
    with pytest.raises(SepoError, match="'acme/oracle' is no local directory; name the output_dir"):
        oracle_members(named)
    assert oracle_members(named, made_earlier=lambda name: name == "acme/oracle") == named.members


def test_distributions_over_other_vocabularies_are_not_compared(world, oracles, scored, tmp_path):
    shutil.copytree(world / "oracle", tmp_path / "padded")
    config = json.loads((tmp_path / "padded" / "config.json").read_text())
    (tmp_path / "padded" / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 8}))
    with pytest.raises(
        SepoError, match="oracle_scores is centered, which compares whole distributions, but the oracle"
    ):
        scored(oracle_model=str(tmp_path / "padded"), oracle_scores="centered")
