"""Models of a hub in LLaMA-Factory: revisions, tokens, caches and other hubs, for the policy and for scoring models."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from sepo.cli import main
from sepo.hosts.llamafactory import scoring_models
from sepo.hosts.llamafactory.recipe import get_train_args, settings_of
from sepo.hosts.llamafactory.workflow import prepared_data
from sepo.scoring.hub import forget_hub
from tests.support import foreign
from tests.support import hub as hubs
from tests.support.recipes import environment, python_path, run, sepo_recipe, write

WORKER = Path(hubs.__file__).with_name("hub_worker.py")
PRECOMPUTED = {"stage": "minor_dpo", "oracle_model": None, "oracle_base_model": None, "ref_precompute": True}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hubs.running() as running:
        hubs.use(running.endpoint, monkeypatch, tmp_path / "cache")
        yield running
    forget_hub()


@pytest.fixture
def served(hub, world):
    """Serve the models of ``world`` under ``acme``; the revision v2 of the policy has the weights of another model."""
    for name in ("policy", "oracle", "base"):
        hub.add(f"acme/{name}", world / name)
    hub.commits = {"v2": hub.add("acme/policy", world / "base", revision="v2")}
    return hub


def named(world, tmp_path, **overrides):
    names = {"model_name_or_path": "acme/policy", "oracle_model": "acme/oracle", "oracle_base_model": "acme/base"}
    return sepo_recipe(world, tmp_path / "out", **{**names, **overrides})


def parsed(recipe):
    forget_hub()  # as in a new process
    return get_train_args(recipe)


def stores(recipe):
    model_args, data_args, training_args, finetuning_args, _ = parsed(recipe)
    data = prepared_data(
        settings_of(finetuning_args), model_args=model_args, data_args=data_args, training_args=training_args
    )
    return {what: Path(found["train"]).name for what, found in data.stores.items()}


def refused(capsys, *words):
    forget_hub()
    status = main([str(word) for word in words])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sepo: error:")]
    assert status == 2
    assert len(errors) == 1
    return errors[0]


def test_a_hub_name_and_a_directory_with_the_same_files_have_the_same_store(served, world, tmp_path):
    found = stores(named(world, tmp_path))
    assert found == stores(sepo_recipe(world, tmp_path / "out"))
    served.add("other/copy", world / "oracle")
    assert found == stores(named(world, tmp_path, oracle_model="other/copy"))


@pytest.mark.parametrize("at", ["v2", "commit"])
def test_another_revision_of_the_policy_is_another_reference(served, world, tmp_path, at):
    main_store = stores(named(world, tmp_path, **PRECOMPUTED))
    revision = served.commits["v2"] if at == "commit" else at
    second = stores(named(world, tmp_path, model_revision=revision, **PRECOMPUTED))
    assert second != main_store
    base = {"model_name_or_path": str(world / "base")}
    assert second == stores(named(world, tmp_path, **PRECOMPUTED, **base))  # the content of v2


def test_the_revision_of_the_policy_is_not_the_oracles(served, world, tmp_path):
    expected = stores(sepo_recipe(world, tmp_path / "out"))
    assert stores(named(world, tmp_path, model_revision="v2")) == expected
    served.add("acme/oracle", world / "policy", revision="v2")
    assert stores(named(world, tmp_path, oracle_model_revision="v2")) != expected


def test_prompts_to_the_starting_policy_follow_its_revision(served, world, tmp_path):
    treg = {"stage": "treg", "oracle_model": None, "oracle_base_model": None}
    first, second = (stores(named(world, tmp_path, model_revision=at, **treg)) for at in ("main", "v2"))
    assert first != second
    judge = {**treg, "treg_eval_model": "acme/policy"}
    one, two = (stores(named(world, tmp_path, treg_eval_model_revision=at, **judge)) for at in (None, "v2"))
    assert one != two


@pytest.mark.parametrize("precomputed", [True, False])
def test_a_reference_has_the_policys_revision_or_its_own(served, world, tmp_path, precomputed):
    served.add("acme/base", world / "policy", revision="v2")
    keys = {**PRECOMPUTED, "ref_precompute": precomputed, "ref_model": "acme/base", "model_revision": "v2"}

    def weights(**more):
        *_, finetuning_args, _ = parsed(named(world, tmp_path, **keys, **more))
        return (Path(finetuning_args.ref_model) / "model.safetensors").read_bytes()

    assert weights() == (world / "policy" / "model.safetensors").read_bytes()
    assert weights(ref_model_revision="main") == (world / "base" / "model.safetensors").read_bytes()
    if precomputed:
        assert stores(named(world, tmp_path, **keys)) != stores(
            named(world, tmp_path, **keys, ref_model_revision="main")
        )


def test_the_host_loads_the_commit_that_was_resolved(served, world, tmp_path):
    adapter = {"adapter_config.json": json.dumps({"peft_type": "LORA"}), "adapter_model.safetensors": b"x"}
    served.add("acme/adapter", more=adapter)
    served.add("acme/adapter", more={**adapter, "adapter_model.safetensors": b"y"}, revision="v2")
    recipe = named(world, tmp_path, model_revision="v2", adapter_name_or_path="acme/adapter")
    model_args = parsed(recipe)[0]
    assert model_args.model_name_or_path == "acme/policy"  # which trained adapters record
    assert model_args.model_revision == served.commits["v2"]
    (folder,) = model_args.adapter_name_or_path
    assert (Path(folder) / "adapter_model.safetensors").read_bytes() == b"y"


def test_an_adapter_in_a_folder_of_its_repository_is_left_to_the_host(served, world, tmp_path):
    served.add("acme/several", more={"sft/adapter_config.json": "{}", "sft/adapter_model.safetensors": b"x"})
    keys = {"adapter_name_or_path": "acme/several", "adapter_folder": "sft"}
    model_args = parsed(named(world, tmp_path, **keys))[0]
    assert model_args.adapter_name_or_path == ["acme/several"]
    assert model_args.model_revision == "main"  # which the host also requests of the adapter's repository


def test_plan_reads_the_adapter_that_a_run_continues(served, world, tmp_path):
    from sepo.hosts.llamafactory.plan.recipe import planned_run

    files = {
        "adapter_config.json": json.dumps({"r": 3, "target_modules": ["q_proj"]}),
        "adapter_model.safetensors": b"x",
    }
    served.add("acme/adapter", more=files)
    run_ = planned_run(named(world, tmp_path, adapter_name_or_path="acme/adapter"))
    assert (run_.trained.adapters.rank, run_.trained.adapters.targets) == (3, ("q_proj",))
    assert served.fetched("acme/adapter") == {"adapter_config.json"}


def test_tokens_of_the_recipe_reach_every_repository(served, world, tmp_path, capsys):
    served.tokens = {"hf_right"}
    for name in ("policy", "oracle", "base"):
        served.repositories[f"acme/{name}"].private = True
    recipe = named(world, tmp_path, hf_hub_token="hf_right")
    stores(recipe)
    stores({**named(world, tmp_path, **PRECOMPUTED), "hf_hub_token": "hf_right"})
    asked = [sent for _, path, sent in served.requests if path.endswith((".safetensors", "/revision/main"))]
    assert len(asked) >= 6
    assert all(asked)
    main(["plan", str(write(recipe, tmp_path / "recipe.yaml")), f"cache_dir={tmp_path / 'new'}"])
    assert "activations" in capsys.readouterr().out


def test_cache_dir_holds_every_model_once_and_serves_offline(served, world, tmp_path, monkeypatch):
    recipe = named(world, tmp_path, cache_dir=str(tmp_path / "mine"), model_revision="v2")
    expected = stores(recipe)
    downloads = [path for method, path, _ in served.requests if method == "GET" and path.endswith(".safetensors")]
    assert len(downloads) == len(set(downloads)) == 3
    assert not (tmp_path / "cache" / "models--acme--oracle").exists()
    hubs.set_offline(monkeypatch)
    served.requests.clear()
    assert stores(recipe) == expected
    assert served.requests == []


@pytest.fixture(scope="module")
def others(world, tmp_path_factory):
    """Return a directory with an oracle and its base with another tokenizer than the policy's."""
    from tests.support import tiny

    root = tmp_path_factory.mktemp("others")
    words = foreign.metaspace_bpe()
    tiny.save_model(root / "base", seed=3, words=words)
    tiny.save_model(root / "oracle", seed=4, words=words, noise_over=root / "base")
    return root


def test_an_oracle_whose_template_is_in_a_file_of_its_own(hub, world, others, tmp_path):
    for name in ("oracle", "base"):
        hub.add(f"acme/{name}", others / name)
    assert (
        "chat_template.jinja" in hub.repositories["acme/oracle"].commits[hub.repositories["acme/oracle"].refs["main"]]
    )
    own = {"model_name_or_path": str(world / "policy")}
    local = {"oracle_model": str(others / "oracle"), "oracle_base_model": str(others / "base")}
    assert stores(named(world, tmp_path, **own)) == stores(named(world, tmp_path, **own, **local))


def test_the_template_of_an_adapter_on_the_hub_is_read(hub, world, others, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(others / "base"), LoraConfig(r=2, init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    )
    hub.add("acme/adapter", tmp_path / "adapter")
    keys = {
        "model_name_or_path": str(world / "policy"), "oracle_model": None, "oracle_base_model": str(others / "base"),
    }  # fmt: skip
    found = stores(named(world, tmp_path, **keys, oracle_model_adapters="acme/adapter"))
    assert found == stores(named(world, tmp_path, **keys, oracle_model_adapters=str(tmp_path / "adapter")))


def test_a_model_and_its_tokenizer_with_their_own_code(hub, world, tmp_path, monkeypatch):
    folder = tmp_path / "own"
    shutil.copytree(world / "oracle", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own_words.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    values = json.loads((folder / "config.json").read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "own_model.OwnModel"}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "own_model.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\nclass OwnModel(LlamaForCausalLM):\n    pass\n"
    )
    (folder / "own_words.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    hub.add("acme/own", folder)
    from sepo.recipe.model_specs import ModelSpec
    from sepo.scoring.hub import HubAccess
    from sepo.scoring.model_files import own_tokenizer

    access = HubAccess(trust_remote_code=True)
    loaded = own_tokenizer(ModelSpec("acme/own"), key="oracle_model", access=access)
    assert type(loaded).__name__ == "OwnTokenizer"
    recipe = named(world, tmp_path, model_name_or_path=str(world / "policy"), oracle_base_model=str(world / "base"))
    loaded = []
    load = scoring_models.load_model

    def load_model(*args, **options):
        loaded.append(load(*args, **options))
        return loaded[-1]

    monkeypatch.setattr(scoring_models, "load_model", load_model)
    stores({**recipe, "oracle_model": "acme/own", "trust_remote_code": True})
    assert [type(model).__name__ for model in loaded] == ["OwnModel", "LlamaForCausalLM"]


def test_names_of_modelscope_are_not_requested_from_hugging_face(served, world, tmp_path, monkeypatch):
    import modelscope

    requested = []

    def snapshot_download(name, revision=None, cache_dir=None):
        requested.append((name, revision))
        return str(world / name.removeprefix("acme/"))

    monkeypatch.setattr(modelscope, "snapshot_download", snapshot_download)
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert stores(named(world, tmp_path)) == stores(sepo_recipe(world, tmp_path / "out"))
    assert sorted(requested) == [(f"acme/{name}", "master") for name in ("base", "oracle", "policy")]
    assert served.requests == []


WRONG = [
    ({"model_name_or_path": "acme/none"}, "model_name_or_path: 'acme/none' is neither a local directory"),
    ({"model_revision": "v9"}, "model_name_or_path: 'acme/policy' has no revision 'v9'"),
    ({"oracle_model": "acme/none"}, "oracle_model: 'acme/none' is neither"),
    ({"oracle_base_model_revision": "v9"}, "oracle_base_model: 'acme/base' has no revision 'v9'"),
    ({"oracle_model": ""}, "oracle_model is empty"),
    ({"hf_hub_token": True}, "model_name_or_path: 'acme/policy' is neither a local directory"),
]


def test_a_token_that_looks_like_a_number_is_sent(served, world, tmp_path, capsys):
    served.tokens = {"12345"}
    served.repositories["acme/oracle"].private = True
    recipe = write(named(world, tmp_path, hf_hub_token=12345), tmp_path / "recipe.yaml")
    forget_hub()
    assert main(["plan", str(recipe)]) == 0
    assert "activations" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "score", "plan"])
@pytest.mark.parametrize(("keys", "said"), WRONG)
def test_what_the_hub_does_not_provide_is_refused_in_one_line(
    served, world, tmp_path, capsys, monkeypatch, command, keys, said
):
    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)  # no weights are loaded
    recipe = write(named(world, tmp_path, **keys), tmp_path / "recipe.yaml")
    assert said in refused(capsys, command, recipe)


def test_what_the_hub_does_not_provide_is_refused_by_eval_credit_and_pipeline(
    served, world, tmp_path, capsys, monkeypatch
):
    recipe = named(world, tmp_path, model_revision="v9")
    assert "'acme/policy' has no revision 'v9'" in refused(capsys, "eval", write(recipe, tmp_path / "recipe.yaml"))
    words = ["demo", "--scorers", "surprisal", "--rows", "2", "--model", "acme/policy@v9"]
    assert "'acme/policy' has no revision 'v9'" in refused(capsys, "credit", *words)
    chain = {name: value for name, value in recipe.items() if not name.startswith("oracle") and name != "stage"}
    started = []
    monkeypatch.setattr("sepo.hosts.llamafactory.pipeline._run", lambda *step: started.append(step))
    assert "no revision 'v9'" in refused(capsys, "pipeline", write(chain, tmp_path / "pipeline.yaml"))
    assert started == []


def test_plan_fetches_configurations_only(served, world, tmp_path, capsys):
    main(["plan", str(write(named(world, tmp_path), tmp_path / "recipe.yaml"))])
    assert {*served.fetched("acme/policy"), *served.fetched("acme/oracle")} == {"config.json"}


def test_score_fetches_no_weights_of_the_policy(served, world, tmp_path, monkeypatch):
    monkeypatch.setenv("SEPO_SCORE_ONLY", "1")
    stores(named(world, tmp_path))
    assert "model.safetensors" in served.fetched("acme/oracle")
    assert "model.safetensors" not in served.fetched("acme/policy")


def worker(hub, tmp_path, recipe, *, timeout=10, command="train"):
    words = [hub.endpoint, tmp_path / "cache", timeout, command, write(recipe, tmp_path / f"{command}.yaml")]
    return run([sys.executable, WORKER, *words], cwd=tmp_path, env=environment(PYTHONPATH=python_path()))


def test_a_run_records_names_and_commits_and_starts_fast_without_the_hub(served, world, tmp_path):
    recipe = named(world, tmp_path, model_revision="v2", max_steps=1)
    first = worker(served, tmp_path, recipe)
    settings = json.loads((tmp_path / "out" / "sepo_settings.json").read_text())
    assert settings["commits"]["acme/policy"] == {"v2": served.commits["v2"]}
    assert set(settings["commits"]) == {"acme/policy", "acme/oracle", "acme/base"}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/policy"
    listed = run([sys.executable, "-m", "sepo", "scores", "ls", "--dir", tmp_path / "scores"], cwd=tmp_path).stdout
    assert f"acme/oracle (commit {settings['commits']['acme/oracle']['main'][:12]})" in listed
    served.requests.clear()
    served.wait = 120.0
    second = worker(served, tmp_path, {**recipe, "output_dir": str(tmp_path / "again")}, timeout=0.5)
    saving = ("HEAD", "/acme/policy/resolve/main/config.json", False)  # PEFT's, when it saves an adapter
    assert [each for each in served.requests if each != saving] == [served.requests[0]]
    assert (first.stdout + first.stderr).count("cannot be reached") == 0
    assert (second.stdout + second.stderr).count("cannot be reached") == 1
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]
