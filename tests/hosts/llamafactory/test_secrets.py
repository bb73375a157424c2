"""Secrets of a recipe are in no file and no line of output that a command leaves."""

import contextlib
import json
import os
import pickle
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from sepo.cli.main import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory import child_runs, pipeline
from sepo.hosts.llamafactory.chain_steps import Step
from sepo.hosts.llamafactory.reading import SECRETS, read_recipe
from sepo.redaction import HIDDEN, SECRET_KEYS, is_secret_key, redacted
from tests.support.recipes import BIN, environment, run, sepo_recipe, write

KEYS = (
    "hf_hub_token", "ms_hub_token", "om_hub_token", "hub_token", "swanlab_api_key", "swanlab_lark_webhook_url",
    "swanlab_lark_secret",
)  # fmt: skip
PLANTED = {name: f"the-planted-{index}-secret" for index, name in enumerate(KEYS)}
NESTED = "the-planted-nested-secret"
RAY = {"runtime_env": {"env_vars": {"ANY_NAME": NESTED}}}


def test_every_secret_of_the_host_is_in_the_list():
    """A key of the host whose name or help is about secrets is listed, or is known to hold none."""
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        RayArguments,
        TrainingArguments,
    )

    about = re.compile(r"(?i)hub_token|api.?key|secret|webhook|password|credential|auth token|access token")
    groups = (ModelArguments, DataArguments, FinetuningArguments, GeneratingArguments, RayArguments, TrainingArguments)
    found = {
        item.name
        for group in groups
        for item in fields(group)
        if item.init and about.search(f"{item.name} {item.metadata.get('help', '')}")
    }
    assert found - {"push_to_hub"} <= SECRET_KEYS
    assert set(KEYS) <= found
    hidden = {item.name for group in groups for item in fields(group) if item.init and is_secret_key(item.name)}
    assert hidden <= SECRET_KEYS  # no other key is taken for one


def planted(text: bytes) -> list[str]:
    return [secret for secret in (*PLANTED.values(), NESTED) if secret.encode() in text]


def assert_clean(done, *folders: Path, but: tuple[Path, ...] = ()):
    """Assert that output and files hold no planted secret."""
    assert not planted(done.stdout.encode()), done.stdout
    assert not planted(done.stderr.encode()), done.stderr
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and file not in but]
    for file in files:
        assert not planted(file.read_bytes()), file


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A run with half of the secrets in its file and half as overrides; everything that it may write is in `home`."""
    home = tmp_path_factory.mktemp("home")
    for name in ("tmp", "cache", "work"):
        (home / name).mkdir()
    recipe = sepo_recipe(world, home / "run", max_steps=2, save_steps=1, eval_dataset="tiny_pairs", plot_loss=True)
    written = {**recipe, **dict(list(PLANTED.items())[::2]), "ray_init_kwargs": RAY}
    overrides = [f"{name}={value}" for name, value in list(PLANTED.items())[1::2]]
    file = write(written, home / "recipe.yaml")
    env = environment(TMPDIR=str(home / "tmp"), HF_HOME=str(home / "cache"), XDG_CACHE_HOME=str(home / "cache"))
    done = run([BIN / "sepo", "train", file, *overrides], cwd=home / "work", env=env)
    return home, file, overrides, env, done


@pytest.mark.host
def test_a_run_leaves_no_secret(trained):
    home, file, _, _, done = trained
    assert_clean(done, home, but=(file,))
    arguments = torch.load(home / "run" / "training_args.bin", weights_only=False)
    assert arguments.hub_token is None  # for plain transformers to read, of its own class
    assert type(arguments).__module__.startswith("llamafactory")
    recorded = json.loads((home / "run" / "_sepo_recipe.json").read_text())["recipe"]
    assert {recorded[name] for name in KEYS} == {HIDDEN}
    assert (home / "run" / "checkpoint-1" / "training_args.bin").is_file()


@pytest.mark.host
@pytest.mark.parametrize(
    "words",
    [
        ("report", "run", "-o", "page.html"),
        ("plan", "RECIPE", "-o", "plan.json"),
        ("eval", "RECIPE", "adapter_name_or_path=run", "-o", "evaluated"),
        ("bench", "RECIPE", "--rounds", "1", "--stages", "sepo", "-o", "bench.json"),
        ("score", "RECIPE", "score_batch_tokens=64"),
        ("scores", "export", "RECIPE", "-o", "scores.jsonl"),
        ("show", "run"),
        ("status", "run"),
    ],
    ids=lambda words: words[0],
)
def test_no_command_leaves_a_secret(trained, words):
    home, file, overrides, env, _ = trained
    given = [str(file) if word == "RECIPE" else word for word in words]
    if "RECIPE" in words:
        position = given.index(str(file)) + 1
        given[position:position] = overrides
    done = run([BIN / "sepo", *given], cwd=home, env=env)
    assert_clean(done, home, but=(file,))


@pytest.mark.parametrize(
    ("command", "recipe", "overrides"),
    [
        ("pipeline", {"policy": [PLANTED]}, ()),
        ("pipeline", {}, ("hub_token=" + PLANTED["hub_token"] + "${",)),
        ("train", {}, ("hub_token=" + PLANTED["hub_token"] + "${",)),
        ("train", {"oracle_model": PLANTED}, ()),
        ("train", {"oracle_model_adapters": [PLANTED]}, ()),
        ("train", {"stage": PLANTED}, ()),
        ("train", {"select_ratio": {"a": PLANTED}}, ()),
        ("plan", {"select_ratio": {"a": PLANTED}}, ()),
        ("plan", {}, ("--hub_token", PLANTED["hub_token"])),
        ("eval", {"temperature": PLANTED}, ()),
    ],
)
def test_no_error_quotes_a_secret(world, tmp_path, monkeypatch, capsys, command, recipe, overrides):
    for name in ("PATH", "CUDA_VISIBLE_DEVICES", "LLAMAFACTORY_VERBOSITY"):  # commands set them
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(sys, "argv", sys.argv)
    file = write({**sepo_recipe(world, tmp_path / "out"), **recipe}, tmp_path / "r.yaml")
    try:
        status = main([command, str(file), *overrides])
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2
    out, err = capsys.readouterr()
    assert "error:" in err
    assert not planted((out + err).encode()), err
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.host
def test_a_pipeline_leaves_no_secret_and_its_steps_get_them(world, tmp_path):
    """Each step records that it was given the secrets; a step that is run alone names the ones that it lacks."""
    recipe = {
        "model_name_or_path": str(world / "policy"), "template": "chatml", "dataset_dir": str(world / "data"),
        "dataset": "tiny_pairs", "cutoff_len": 128, "finetuning_type": "lora", "lora_rank": 2, "max_steps": 1,
        "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True, "output_dir": str(tmp_path / "out"),
        "token_scores_dir": str(tmp_path / "scores"), "base": {"hub_token": PLANTED["hub_token"]}, **PLANTED,
    }  # fmt: skip
    file = write(recipe, tmp_path / "pipeline.yaml")
    (tmp_path / "tmp").mkdir()
    env = environment(TMPDIR=str(tmp_path / "tmp"))
    done = run([BIN / "sepo", "pipeline", file, "oracle.max_steps=1"], cwd=tmp_path, env=env, forks=True)
    # The base and the oracle are trained by the host's own stages, whose files are the host's.
    own = [tmp_path / "out" / name for name in ("sample", "policy", "pipeline")]
    hosts = tuple(file for name in ("base", "oracle") for file in (tmp_path / "out" / name).rglob("training_args.bin"))
    assert_clean(done, tmp_path, *own, but=(file, *hosts))
    for step in ("base", "policy"):  # the host's trainer saves its token: it was given to the step
        arguments = torch.load(tmp_path / "out" / step / "training_args.bin", weights_only=False)
        assert arguments.hub_token == (None if step == "policy" else PLANTED["hub_token"])
    alone = run([BIN / "sepo", "train", tmp_path / "out" / "pipeline" / "policy.yaml"], cwd=tmp_path, expect=2)
    assert re.search(rf"error: \w+ is '{re.escape(HIDDEN)}': a recorded recipe has no secrets", alone.stderr)


@pytest.mark.host
def test_workers_of_torchrun_read_the_secrets(world, tmp_path):
    """The variable is handed through the launcher: the value of a key that is visible in the result."""
    file = write(sepo_recipe(world, tmp_path / "out", max_steps=3), tmp_path / "r.yaml")
    env = environment(FORCE_TORCHRUN="1", NPROC_PER_NODE="1", **{SECRETS: json.dumps({"max_steps": 1})})
    run([BIN / "sepo", "train", file], cwd=tmp_path, env=env)
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 1


def test_secrets_are_read_once_and_leave_the_environment(tmp_path, monkeypatch):
    file = write({"stage": "sepo", "hub_token": HIDDEN, "seed": 1}, tmp_path / "r.yaml")
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(file), "seed=2", "lora_rank=4"])
    monkeypatch.setenv(SECRETS, json.dumps({"hub_token": PLANTED["hub_token"]}))
    kept = read_recipe(keep_secrets=True)
    assert SECRETS in os.environ
    read = read_recipe()
    assert read == kept == {"stage": "sepo", "hub_token": PLANTED["hub_token"], "seed": 2, "lora_rank": 4}
    assert SECRETS not in os.environ
    assert read.origins["stage"] == "stage in r.yaml"
    assert [read.origins[name] for name in ("seed", "lora_rank")] == [
        "seed on the command line", "lora_rank on the command line",
    ]  # fmt: skip
    assert pickle.loads(pickle.dumps(read)).origins == read.origins  # Ray carries the recipe to its workers
    with pytest.raises(SepoError, match=r"hub_token is '\(not recorded\)': a recorded recipe has no secrets. Add"):
        read_recipe()


def test_a_step_is_given_its_secrets_by_the_environment(tmp_path, monkeypatch):
    seen = {}

    @contextlib.contextmanager
    def start(command, *, env, stdout, stderr):
        seen.update(command=command, env=env)
        yield SimpleNamespace(pid=1, wait=lambda: 1)

    monkeypatch.setattr(child_runs.subprocess, "Popen", start)
    step = Step("base", {"model_name_or_path": "m", "output_dir": "o", "ray_init_kwargs": RAY, **PLANTED})
    with pytest.raises(SepoError, match=r"base\.yaml ray_init_kwargs=\.\.\. hf_hub_token=\.\.\.") as caught:
        pipeline._run(step, tmp_path)
    assert not planted(str(caught.value).encode())
    recipe = yaml.safe_load(Path(seen["command"][-1]).read_text())
    assert recipe == redacted(step.recipe)
    assert {**recipe, **json.loads(seen["env"][SECRETS])} == step.recipe
