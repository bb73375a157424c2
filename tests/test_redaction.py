"""Secrets of a recipe are replaced, and nothing else is."""

import json

import pytest

from sepo.redaction import (
    HIDDEN,
    SECRET_KEYS,
    redacted,
    redacted_words,
    remember_secrets,
    secrets_of,
    without_secrets,
)

HARMLESS = {
    "stage": "sepo", "token_scorer": "oracle", "token_scores_dir": "/scores", "score_batch_tokens": 8192,
    "head_chunk_tokens": 64, "select_span_tokens": 3, "batch_tokens": None, "learning_rate": 1.0e-5, "do_train": True,
    "model_name_or_path": "cross-encoder/ms-marco-MiniLM-L-6-v2", "oracle_model_adapters": ["saves/a", "saves/hf_sft"],
    "model_revision": "0123456789abcdef0123456789abcdef01234567", "deepspeed": {"zero_optimization": {"stage": 3}},
    "skip_special_tokens": False, "add_tokens": "<a>,<b>", "run_name": "monkey", "dataset": "task-sk-pairs",
    "output_dir": "https://host:8080/saves", "hf_use_auth_token": True, "template_thinking_key": "reasoning",
    "special_tokens": {"bos_token": "<s>", "image_token": "<image>"}, "deepspeed_text": '{"train_batch_size": 2}',
}  # fmt: skip


def test_other_values_are_kept_unchanged():
    assert redacted(HARMLESS) == HARMLESS


@pytest.mark.parametrize(
    "name",
    [
        *sorted(SECRET_KEYS), "WANDB_API_KEY", "aws_secret", "password", "key", "token", "s3_access_key_id",
        "dingtalk_webhook", "trackio_api_key",
    ],
)  # fmt: skip
@pytest.mark.parametrize("secret", ["x", 12345678, 1.5], ids=str)
def test_keys_that_hold_secrets_are_hidden(name, secret):
    """Whatever the value looks like: YAML reads a token of digits as a number."""
    assert redacted({name: secret}) == {name: HIDDEN}
    assert redacted({"outer": [{name: [secret, secret]}]}) == {"outer": [{name: [HIDDEN, HIDDEN]}]}
    assert redacted({name: {"a": secret, "b": {"c": secret}}}) == {name: {"a": HIDDEN, "b": {"c": HIDDEN}}}
    assert redacted({name: None}) == {name: None}


def test_a_mapping_in_a_string_is_read():
    """The value of a key on a command line: ray_init_kwargs, for one."""
    text = json.dumps({"runtime_env": {"env_vars": {"HARMLESS_LOOKING": "s3cret"}}, "num_cpus": 2})
    hidden = redacted({"ray_init_kwargs": text})["ray_init_kwargs"]
    assert json.loads(hidden) == {"runtime_env": {"env_vars": {"HARMLESS_LOOKING": HIDDEN}}, "num_cpus": 2}


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "aB3" * 11, "sk-proj-" + "aB3_" * 8, "ghp_" + "a1" * 18, "github_pat_" + "a1_" * 10,
        "glpat-" + "a1" * 10, "0123456789abcdef" * 3, "https://user:pa55@host/x", "xoxb-1234567890-abc",
        "AKIA" + "A1" * 8, "eyJhbGciOi.eyJzdWIi.c2lnbmF0", "ms-01234567-89ab-cdef-0123-456789abcdef",
    ],
)  # fmt: skip
def test_values_that_look_like_secrets_are_hidden_under_any_key(secret):
    assert redacted({"logging_dir": f"{secret}", "extra": [{"a": secret}]}) == {
        "logging_dir": HIDDEN,
        "extra": [{"a": HIDDEN}],
    }


def test_secrets_are_found_by_their_top_level_key():
    recipe = {"stage": "sepo", "hub_token": "a", "nested": [{"api_key": "b"}], "hf_hub_token": None}
    assert secrets_of(recipe) == {"hub_token": "a", "nested": [{"api_key": "b"}]}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["r.yaml", "hub_token=a", "seed=1"], ["r.yaml", f"hub_token={HIDDEN}", "seed=1"]),
        (["policy.swanlab_api_key=a"], [f"policy.swanlab_api_key={HIDDEN}"]),
        (["--hub-token=a", "--stage", "sepo"], [f"--hub-token={HIDDEN}", "--stage", "sepo"]),
        (["--hub_token", "a", "b"], ["--hub_token", HIDDEN, "b"]),
        (["dataset=hf_" + "a" * 30], [f"dataset={HIDDEN}"]),
    ],
)
def test_words_of_a_command_line(words, shown):
    assert redacted_words(words) == shown


def test_texts_lose_the_secrets_that_were_read(monkeypatch):
    monkeypatch.setattr("sepo.redaction._known", set())
    ray = json.dumps({"env_vars": {"A": "in-json"}})
    remember_secrets({"hub_token": "a-token", "nested": [{"api_key": 98765}], "ray_init_kwargs": ray, "key": "ab"})
    text = "stage is {'hub_token': 'a-token'}, 98765, in-json, a table"
    assert without_secrets(text) == f"stage is {{'hub_token': '{HIDDEN}'}}, {HIDDEN}, {HIDDEN}, a table"


def test_common_words_in_environment_variables_stay_in_texts(monkeypatch):
    """A message without the words that it consists of would be of no use; records have none of these values."""
    monkeypatch.setattr("sepo.redaction._known", set())
    variables = {"WANDB_PROJECT": "sepo", "WANDB_MODE": "offline", "NCCL_TIMEOUT": 1800, "WANDB_API_KEY": "abcd"}
    remember_secrets({"ray_init_kwargs": {"runtime_env": {"env_vars": {**variables, "LOGIN": "abc-1234"}}}})
    text = "sepo: error: offline for 1800 s"
    assert without_secrets(f"{text}: abcd, abc-1234") == f"{text}: {HIDDEN}, {HIDDEN}"
    assert set(redacted({"env_vars": variables})["env_vars"].values()) == {HIDDEN}
