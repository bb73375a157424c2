"""Models by name: which files of a repository are fetched, revisions, access, and the cache when the hub is away."""

import contextlib
import json

import pytest

from sepo.errors import SepoError
from sepo.recipe.model_specs import ModelSpec
from sepo.rewards.reward_files import reward_files
from sepo.scoring.hub import HubAccess, cached_if_unreachable, forget_hub
from sepo.scoring.hub_files import ADAPTER, MODEL, tokenizer_files, weight_files
from sepo.scoring.model_files import local_spec, model_files, own_tokenizer, spec_files
from sepo.scoring.stored_columns import spec_identity
from tests.support import hub as hubs


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hubs.running() as running:
        hubs.use(running.endpoint, monkeypatch, tmp_path / "cache")
        yield running
    forget_hub()


def files_of(name, access=None, *, key="oracle_model", marker=MODEL, **options):
    return model_files(name, key=key, marker=marker, access=access or HubAccess(), **options)


def refused(name, access=None, **options):
    with pytest.raises(SepoError) as error:
        files_of(name, access, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def identity(name, revision=None, access=None):
    return spec_identity(ModelSpec(name, revision=revision), key="oracle_model", access=access or HubAccess())


def test_only_what_loading_needs_is_fetched(hub, world):
    more = {
        "pytorch_model.bin": b"twice", "onnx/model.onnx": b"x", "original/consolidated.00.pth": b"x",
        "README.md": "x", "training_args.bin": b"x", "trainer_state.json": "{}", "modeling.py": "first = 1",
        "sub/code.py": "second = 2",
        "additional_chat_templates/tool_use.jinja": "tools", "chat_template.jinja": "plain",
        "checkpoint-5/config.json": "{}",
        "pytorch_model.bin.index.json": "{}",
    }  # fmt: skip
    hub.add("acme/oracle", world / "oracle", more=more)
    found = files_of("acme/oracle")
    templates = {"chat_template.jinja", "additional_chat_templates/tool_use.jinja"}
    expected = {path.name for path in (world / "oracle").iterdir()} | templates
    assert hub.fetched("acme/oracle") == set(found.files) == expected
    files_of("acme/oracle", HubAccess(trust_remote_code=True))
    assert hub.fetched("acme/oracle") == expected | {"modeling.py", "sub/code.py"}
    own_tokenizer(ModelSpec("acme/oracle"), key="oracle_model", access=HubAccess())


def test_the_configuration_alone_can_be_fetched(hub, world):
    hub.add("acme/oracle", world / "oracle")
    files_of("acme/oracle", need="config")
    assert hub.fetched("acme/oracle") == {"config.json"}
    files_of("acme/oracle", need="tokenizer")
    assert "model.safetensors" not in hub.fetched("acme/oracle")
    files_of("acme/oracle")
    assert len([path for path in hub.lookups("acme/oracle") if path.endswith("/revision/main")]) == 1


def test_a_value_head_is_fetched_for_a_reward_model_alone(hub, world):
    hub.add("acme/rm", world / "oracle", more={"value_head.safetensors": b"head"})
    before = identity("acme/rm")
    assert "value_head.safetensors" not in hub.fetched("acme/rm")
    judge = reward_files(ModelSpec("acme/rm"), access=HubAccess())
    assert judge.head == "value"
    assert (judge.last / "value_head.safetensors").read_bytes() == b"head"
    forget_hub()
    assert identity("acme/rm") == before
    as_judge = spec_identity(ModelSpec("acme/rm"), key="judge_model", access=HubAccess(), need="reward")
    assert as_judge != before
    hub.add("acme/plain", world / "oracle")
    assert identity("acme/plain") == spec_identity(
        ModelSpec("acme/plain"), key="judge_model", access=HubAccess(), need="reward"
    )


def test_weights_are_those_that_from_pretrained_prefers(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part_1.safetensors", "b": "part_2.safetensors"}}))
    shards = ["part_1.safetensors", "part_2.safetensors"]
    both = [index.name, *shards, "pytorch_model.bin", "consolidated.safetensors"]

    def chosen(files, marker=MODEL):
        return weight_files(files, marker=marker, read=lambda name: tmp_path / name)

    assert chosen(both) == [index.name, *shards]
    assert chosen([*both, "model.safetensors"]) == ["model.safetensors"]
    assert chosen(["pytorch_model.bin", "optimizer.bin", "onnx/model.safetensors"]) == ["pytorch_model.bin"]
    assert chosen(["other.bin", "training_args.bin"]) == ["other.bin"]
    assert chosen(["adapter_model.bin", "model.safetensors"], ADAPTER) == ["adapter_model.bin"]
    assert chosen(["README.md"]) == []


def test_files_of_tokenizers():
    kept = ["tokenizer.model", "merges.txt", "vocab.json", "qwen.tiktoken", "tokenizer.model.v3", "chat_template.jinja"]
    dropped = ["model.safetensors", "model.safetensors.index.json", "trainer_state.json", "README.md", "a/config.json"]
    assert tokenizer_files([*kept, *dropped]) == sorted(kept)


def test_revisions_are_the_models_own(hub, world):
    hub.add("acme/oracle", world / "oracle")
    second = hub.add("acme/oracle", world / "policy", revision="v2")
    assert identity("acme/oracle") == identity(str(world / "oracle"))
    for revision in ("v2", second):
        assert identity("acme/oracle", revision) == identity(str(world / "policy"))
        assert files_of("acme/oracle", revision=revision).commit == second
    assert identity("acme/oracle", "main") != identity("acme/oracle", "v2")
    said = refused("acme/oracle", revision="v3")
    assert said.startswith("oracle_model: 'acme/oracle' has no revision 'v3' at http://127.0.0.1")
    assert "set oracle_model_revision" in said
    assert "set model_revision" in refused("acme/oracle", key="adapter_name_or_path", revision="v3", marker=ADAPTER)


def test_other_files_in_the_cache_do_not_change_the_identity(hub, world, tmp_path):
    hub.add("acme/oracle", world / "oracle", more={"pytorch_model.bin": b"fetched by another program"})
    before = identity("acme/oracle")
    from huggingface_hub import snapshot_download

    assert "pytorch_model.bin" in {path.name for path in hubs.Path(snapshot_download("acme/oracle")).iterdir()}
    forget_hub()
    assert identity("acme/oracle") == before == identity(str(world / "oracle"))


def test_each_repository_is_looked_up_once(hub, world):
    hub.add("acme/oracle", world / "oracle")
    spec = ModelSpec("acme/oracle")
    for _ in range(3):
        spec_files(spec, key="oracle_model", access=HubAccess())
        own_tokenizer(spec, key="oracle_model", access=HubAccess())
        local_spec(spec, key="oracle_model", access=HubAccess())
    before = list(hub.requests)
    assert len([path for path in hub.lookups("acme/oracle") if path.endswith("/revision/main")]) == 1
    forget_hub()  # the next process: one request
    local_spec(spec, key="oracle_model", access=HubAccess())
    assert len(hub.requests) == len(before) + 1


def test_private_repositories(hub, world, monkeypatch):
    hub.tokens = {"hf_right"}
    hub.add("acme/secret", world / "oracle", private=True)
    assert "not found at http://127.0.0.1" in (said := refused("acme/secret"))
    assert "or private: no token was sent, set hf_hub_token or HF_TOKEN" in said
    assert "refused the token" in refused("acme/secret", HubAccess(token="hf_wrong"))
    assert "not readable with the token that was sent" in refused("acme/none", HubAccess(token="hf_right"))
    assert files_of("acme/secret", HubAccess(token="hf_right")).commit
    assert "hf_right" not in repr(HubAccess(token="hf_right"))
    hub.add("acme/gated", world / "oracle", gated=True)
    assert "it is gated: request access on its page" in refused("acme/gated")


def test_a_token_of_the_environment_is_used(hub, world, monkeypatch):
    hub.tokens = {"hf_right"}
    hub.add("acme/secret", world / "oracle", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert files_of("acme/secret").commit


def test_a_login_that_the_recipe_requires_but_is_missing_is_not_a_hub_out_of_reach(hub, world):
    hub.add("acme/oracle", world / "oracle")
    files_of("acme/oracle")
    forget_hub()
    said = refused("acme/oracle", HubAccess(token=True))  # as from_pretrained, also if the cache holds it
    assert (
        "requires the token of the environment or of a login, and there is none: set hf_hub_token or HF_TOKEN" in said
    )
    assert files_of("acme/oracle").commit


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_directory(hub, world, monkeypatch, name):
    monkeypatch.chdir(world / "oracle")
    assert refused(name) == "oracle_model is empty; set it to a local directory or a hub name."
    assert hub.requests == []


def test_a_revision_with_a_slash(hub, world):
    commit = hub.add("acme/oracle", world / "oracle", revision="release/1")
    assert files_of("acme/oracle", revision="release/1").commit == commit


def test_a_cached_repository_is_used_without_access(hub, world, caplog):
    hub.add("acme/oracle", world / "oracle")
    folder = files_of("acme/oracle").folder
    hub.repositories["acme/oracle"].private = True
    forget_hub()
    assert files_of("acme/oracle").folder == folder
    assert "'acme/oracle': not found at" in caplog.text


def test_the_wrong_kind_is_refused_before_its_weights_are_fetched(hub, world):
    hub.add("acme/oracle", world / "oracle")
    hub.add("acme/adapter", more={"adapter_config.json": "{}", "adapter_model.safetensors": b"x"})
    assert "it holds an adapter" in refused("acme/adapter")
    assert "it holds a full model" in refused("acme/oracle", marker=ADAPTER)
    hub.add("acme/empty", more={"README.md": "x"})
    assert "the repository has no config.json" in refused("acme/empty")
    hub.add("acme/gguf", more={"config.json": "{}", "model.gguf": b"x"})
    assert "the repository has no weights" in refused("acme/gguf")
    assert not hub.fetched("acme/oracle") | hub.fetched("acme/adapter") | hub.fetched("acme/empty")


@pytest.mark.parametrize("name", ["./none/model", "/no/such/model", "~/none", "three/parts/long"])
def test_a_path_is_not_requested_from_the_hub(hub, name):
    assert "is neither a local directory (from " in refused(name)
    assert hub.requests == []


def test_cache_dir_is_where_files_are_kept(hub, world, tmp_path, monkeypatch):
    hub.add("acme/oracle", world / "oracle")
    access = HubAccess(cache_dir=str(tmp_path / "mine"))
    assert (tmp_path / "mine") in files_of("acme/oracle", access).folder.parents
    assert not (tmp_path / "cache").exists()
    forget_hub()
    hubs.set_offline(monkeypatch)
    before = len(hub.requests)
    assert files_of("acme/oracle", access).commit
    said = refused("acme/oracle")
    assert "HF_HUB_OFFLINE is set, and the cache" in said
    assert str(tmp_path / "cache") in said
    assert len(hub.requests) == before


def test_offline_whatever_transformers_loaded_can_be_used(hub, world, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hub.add("acme/oracle", world / "base")
    hub.add("acme/oracle", world / "oracle", revision="v2")
    AutoModelForCausalLM.from_pretrained("acme/oracle", revision="v2")
    AutoTokenizer.from_pretrained("acme/oracle", revision="v2")
    hubs.set_offline(monkeypatch)
    assert identity("acme/oracle", "v2") == identity(str(world / "oracle"))
    assert "at revision 'v9'" in refused("acme/oracle", revision="v9")


def test_what_we_fetched_transformers_loads_offline(hub, world, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hub.add("acme/oracle", world / "oracle", revision="v2")
    files_of("acme/oracle", revision="v2")
    hubs.set_offline(monkeypatch)
    AutoModelForCausalLM.from_pretrained("acme/oracle", revision="v2")
    AutoTokenizer.from_pretrained("acme/oracle", revision="v2")


def test_an_incomplete_cache_is_refused_offline(hub, world, monkeypatch):
    hub.add("acme/oracle", world / "oracle")
    files_of("acme/oracle", need="tokenizer")
    forget_hub()
    hubs.set_offline(monkeypatch)
    assert files_of("acme/oracle", need="tokenizer").commit
    assert "the cache holds no weights of it" in refused("acme/oracle")


@pytest.mark.parametrize("how", ["refused", "hanging"])
def test_an_unreachable_hub_costs_one_time_out(hub, world, monkeypatch, caplog, how):
    from huggingface_hub import constants

    names = ["acme/oracle", "acme/base", "acme/policy"]
    for name in names:
        hub.add(name, world / name.removeprefix("acme/"))
        files_of(name)
    forget_hub()
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    if how == "hanging":
        hub.wait = 3.0
    else:
        hub.close()
    hub.requests.clear()
    for name in names:
        assert files_of(name).commit
    assert "is neither a local directory" in refused("acme/other")
    assert len(hub.requests) == (1 if how == "hanging" else 0)
    assert caplog.text.count("cannot be reached") == 1
    with cached_if_unreachable():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_ranks_of_a_process_without_the_hub_do_not_wait(hub, world, monkeypatch):
    hub.add("acme/oracle", world / "oracle")
    files_of("acme/oracle")
    hub.requests.clear()
    monkeypatch.setenv("SEPO_HUB_UNREACHABLE", "http://another.hub")
    files_of("acme/oracle", need="config")
    forget_hub()
    monkeypatch.setenv("SEPO_HUB_UNREACHABLE", hub.endpoint)
    assert files_of("acme/oracle").commit
    assert "cannot be reached, and the cache" in refused("acme/other")
    assert hub.requests == []


def test_sharded_weights_are_those_of_the_index(hub, world, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world / "oracle")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shards = {path.name for path in (tmp_path / "shards").glob("*.safetensors")}
    assert len(shards) > 1
    hub.add("acme/shards", tmp_path / "shards", more={"model-00099-of-00099.safetensors": b"of another save"})
    found = files_of("acme/shards")
    assert {name for name in found.files if name.endswith(".safetensors")} == shards
    assert identity("acme/shards") == identity(str(tmp_path / "shards"))
    forget_hub()
    hubs.set_offline(monkeypatch)
    assert files_of("acme/shards").folder == found.folder
    (found.folder / min(shards)).unlink()
    forget_hub()
    assert f"1 of its files are not in the cache ({min(shards)})" in refused("acme/shards")


def test_a_broken_download_is_resumed(hub, world):
    hub.add("acme/oracle", world / "oracle")
    hub.broken["acme/oracle/model.safetensors"] = 1
    with contextlib.suppress(SepoError):  # before huggingface_hub 1 by the next run, with it at once
        identity("acme/oracle")
    assert identity("acme/oracle") == identity(str(world / "oracle"))


def test_a_download_that_stays_broken_is_one_line(hub, world, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add("acme/oracle", world / "oracle")
    hub.broken["acme/oracle/model.safetensors"] = 10**6
    assert "the download failed: " in refused("acme/oracle")
