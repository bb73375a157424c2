"""Models of a hub in Axolotl: the revisions of the policy and of scoring models, tokens, and the cache."""

import json
from pathlib import Path

import pytest

from sepo.errors import SepoError
from sepo.scoring.hub import forget_hub
from tests.support import axo, tiny
from tests.support import hub as hubs

ROWS = axo.messages(tiny.pairs(6))
PRECOMPUTED = {"objective": "dpo", "token_scorer": "none", "ref_precompute": True}
LIVE = {"objective": "dpo", "token_scorer": "none", "ref_model": "acme/base"}
SEPO = {"oracle_model": "acme/oracle", "oracle_base_model": "acme/base"}


@pytest.fixture
def hub(monkeypatch, tmp_path, root, plugin):
    """A hub with the tiny models under ``acme``; the revision v2 of the policy has the weights of the base."""
    with hubs.running() as running:
        hubs.use(running.endpoint, monkeypatch, tmp_path / "cache")
        for name in ("policy", "oracle", "base"):
            running.add(f"acme/{name}", root / name)
        running.second = running.add("acme/policy", root / "base", revision="v2")
        yield running
    forget_hub()


@pytest.fixture
def stores(prepared):
    """Return a function that prepares a run as a new process does, and returns the names of its stores."""

    def make(block, **more):
        forget_hub()
        _, found = prepared(ROWS, block, **{"base_model": "acme/policy", **more})
        return {what: Path(by["train"]).name for what, by in found.items()}

    return make


def test_another_revision_of_the_policy_is_another_reference(hub, stores, root):
    first = stores(PRECOMPUTED)
    assert first == stores(PRECOMPUTED, base_model=str(root / "policy"))
    second = stores(PRECOMPUTED, revision_of_model="v2")
    assert first != second
    assert second == stores(PRECOMPUTED, base_model=str(root / "base"))
    assert second == stores(PRECOMPUTED, revision_of_model=hub.second)


def test_scoring_models_have_their_own_revisions(hub, stores, root):
    expected = stores(SEPO, base_model=str(root / "policy"))
    assert stores(SEPO, revision_of_model="v2") == expected
    hub.add("acme/oracle", root / "policy", revision="v2")
    assert stores({**SEPO, "oracle_model_revision": "v2"}) != expected


def test_a_reference_of_another_repository_has_its_own_main_branch(hub, loaded, root):
    hub.add("acme/base", root / "oracle", revision="v2")
    at_second = {"base_model": "acme/policy", "revision_of_model": "v2"}
    for block, revision in (
        (LIVE, None),
        ({**LIVE, "ref_model_revision": "v2"}, "v2"),
        ({**LIVE, "ref_model": "acme/policy"}, "v2"),
    ):
        forget_hub()
        _, settings = loaded(ROWS, block, **at_second)
        assert settings.ref_model.revision == revision


def test_a_run_trains_the_commit_that_was_looked_up(hub, root, tmp_path, train, losses):
    output = tmp_path / "out"
    more = {"sepo": {"token_scores_dir": str(tmp_path / "scores")}, "max_steps": 2}
    local = losses(train(axo.config(root, output, rl="minor_dpo", **more, base_model=str(root / "base"))))
    forget_hub()
    named = {"base_model": "acme/policy", "revision_of_model": "v2"}
    trainer = train(axo.config(root, output, rl="minor_dpo", **more, **named))
    assert losses(trainer) == local
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == "acme/policy"
    settings = json.loads((output / "sepo_settings.json").read_text())
    assert settings["commits"]["acme/policy"]["v2"] == hub.second
    assert json.loads((output / "_sepo_recipe.json").read_text())["recipe"]["revision_of_model"] == hub.second


def test_the_token_of_the_environment_reaches_every_repository(hub, stores, monkeypatch):
    hub.tokens = {"hf_right"}
    for name in ("policy", "oracle", "base"):
        hub.repositories[f"acme/{name}"].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    stores(SEPO)
    weights = [sent for _, path, sent in hub.requests if path.endswith(".safetensors")]
    assert len(weights) >= 3
    assert all(weights)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"base_model": "acme/gone"}, r"base_model: 'acme/gone' is neither .* set HF_TOKEN or run: hf auth login"),
        ({"base_model": "./gone"}, r"base_model: './gone' is neither a local directory"),
        ({"revision_of_model": "v9"}, r"base_model: 'acme/policy' has no revision 'v9' .*; set revision_of_model"),
        ({"block": {"oracle_model": "acme/gone"}}, r"oracle_model: 'acme/gone' is neither"),
        ({"block": {"oracle_model_revision": "v9"}}, r"'acme/oracle' has no revision 'v9' .*set oracle_model_revision"),
        ({"block": {**LIVE, "ref_model": "acme/gone"}}, r"ref_model: 'acme/gone' is neither"),
    ],
    ids=["policy", "path", "revision", "oracle", "oracle-revision", "reference"],
)
def test_names_that_the_hub_does_not_provide_are_refused_before_a_model_loads(hub, stores, monkeypatch, more, message):
    from axolotl.common import datasets

    monkeypatch.setattr(datasets, "load_preference_datasets", lambda *_, **__: pytest.fail("rows are loaded"))
    keys = dict(more)
    block = keys.pop("block", {})
    with pytest.raises(SepoError, match=message):
        stores(block if "ref_model" in block else {**SEPO, **block}, **keys)


def test_a_run_without_the_hub_takes_the_cache(hub, stores, monkeypatch):
    first = stores(SEPO, revision_of_model="v2")
    hub.close()
    hubs.set_offline(monkeypatch)
    assert stores(SEPO, revision_of_model="v2") == first
