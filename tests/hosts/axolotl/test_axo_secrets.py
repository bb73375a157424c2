"""What a run leaves: no secret of its config, and the first screen in its log."""

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from sepo.redaction import HIDDEN, SECRET_KEYS, is_secret_key
from tests.support import axo

KEYS = ("hub_token", "comet_api_key", "swanlab_api_key", "swanlab_lark_webhook_url", "swanlab_lark_secret")
PLANTED = {name: f"the-planted-{index}-secret" for index, name in enumerate(KEYS)}
NESTED = "the-planted-nested-secret"


def schemas(kind: Any, seen: set[type]) -> Iterator[tuple[str, str]]:
    """Yield name and description of each key of a schema, and of the schemas inside it."""
    for part in (kind, *get_args(kind)):
        if part is not kind:
            yield from schemas(part, seen)
        elif isinstance(part, type) and issubclass(part, BaseModel) and part not in seen:
            seen.add(part)
            for name, item in part.model_fields.items():
                extra = item.json_schema_extra if isinstance(item.json_schema_extra, dict) else {}
                yield name, f"{name} {item.description or ''} {extra.get('description', '')}"
                yield from schemas(item.annotation, seen)


def test_every_secret_of_the_host_is_in_the_list():
    from axolotl.integrations.swanlab.args import SwanLabConfig
    from axolotl.utils.schemas.config import AxolotlInputConfig

    keys = dict([*schemas(AxolotlInputConfig, set()), *schemas(SwanLabConfig, set())])
    assert len(keys) > 300
    about = re.compile(r"(?i)api.?key|\bsecret|webhook|password|credential|access token")
    found = {name for name, words in keys.items() if about.search(words)}
    assert found - {"hf_use_auth_token"} <= SECRET_KEYS
    assert {"comet_api_key", "swanlab_api_key", "swanlab_lark_secret"} <= found
    taken = {name for name in keys if is_secret_key(name)} - {"hf_use_auth_token"}  # true or false, which is kept
    assert taken <= SECRET_KEYS


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A run of the real command, with secrets in its config, one of them in a nested block."""
    home = tmp_path_factory.mktemp("home")
    (home / "tmp").mkdir()
    output = home / "run"
    made = axo.config(
        root, output, rl="selective_dpo", rl_beta=0.1, sepo={**axo.block(root, output, "selective_dpo"), "pref_ftx": 1},
        max_steps=2, save_steps=1, save_strategy="steps", dataset_prepared_path=str(home / "prepared"),
        comet_experiment_config={"api_key": NESTED}, **PLANTED,
    )  # fmt: skip
    path = axo.write(made, home / "config.yaml")
    done = subprocess.run(
        [axo.BIN / "axolotl", "train", path, "--launcher", "python"], cwd=home, capture_output=True, text=True,
        check=False, env=axo.environment(TMPDIR=str(home / "tmp"), HF_HOME=str(home / "cache")),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return home, path, done


def planted(text: bytes) -> list[str]:
    return [secret for secret in (*PLANTED.values(), NESTED) if secret.encode() in text]


def test_a_run_leaves_no_secret(finished):
    home, path, done = finished
    assert not planted(done.stdout.encode() + done.stderr.encode())
    files = [file for file in home.rglob("*") if file.is_file() and file != path]
    assert {"README.md", "debug.log", "training_args.bin", "_sepo_recipe.json"} <= {file.name for file in files}
    assert {str(file.relative_to(home)): found for file in files if (found := planted(file.read_bytes()))} == {}
    recorded = json.loads((home / "run" / "_sepo_recipe.json").read_text())["recipe"]
    assert recorded["comet_api_key"] == recorded["comet_experiment_config"]["api_key"] == HIDDEN
    assert recorded["special_tokens"]["pad_token"] == "<|endoftext|>"


def test_the_first_screen_is_in_the_log_before_the_data_and_before_training(finished):
    _, _, done = finished
    screen = (
        "stage         selective_dpo  (rl)\n"
        "objective     selective_dpo  (stage selective_dpo)\n"
        "token scorer  policy_ref  (objective selective_dpo)\n"
        "selection     0.4 of chosen and 0.4 of rejected tokens; unit token, scope response, rule floor\n"
        "reference     the policy at its start\n"
        "not the default of objective selective_dpo:\n"
        "  beta      0.1, default 0.01  (rl_beta)\n"
        "  pref_ftx  1, default 0       (sepo.pref_ftx)\n"
    )
    before, between, after = done.stdout.split(screen)
    assert "'loss'" in after
    assert "'loss'" not in before + between
