"""The recipe that a run saves contains no secrets."""

import json

import pytest

from sepo.runs.provenance import HIDDEN, RECIPE_FILE, package_versions, redacted, write_provenance

HARMLESS = {
    "stage": "sepo", "token_scorer": "oracle", "token_scores_dir": "/scores", "score_batch_tokens": 8192,
    "head_chunk_tokens": 64, "select_span_tokens": 3, "batch_tokens": None, "learning_rate": 1.0e-5, "do_train": True,
    "model_name_or_path": "cross-encoder/ms-marco-MiniLM-L-6-v2", "oracle_model_adapters": ["saves/a", "saves/hf_sft"],
    "model_revision": "0123456789abcdef0123456789abcdef01234567", "deepspeed": {"zero_optimization": {"stage": 3}},
    "skip_special_tokens": False, "add_tokens": "<a>,<b>", "run_name": "monkey", "dataset": "task-sk-pairs",
    "output_dir": "https://host:8080/saves",
}  # fmt: skip


def test_other_values_are_kept_unchanged():
    assert redacted(HARMLESS) == HARMLESS


@pytest.mark.parametrize(
    "name",
    [
        "hf_hub_token", "ms_hub_token", "om_hub_token", "hub_token", "swanlab_api_key", "WANDB_API_KEY", "aws_secret",
        "password", "key", "token", "s3_access_key_id",
    ],
)  # fmt: skip
def test_keys_that_hold_secrets_are_hidden(name):
    assert redacted({name: "x"}) == {name: HIDDEN}
    assert redacted({"outer": [{name: ["x", "y"]}]}) == {"outer": [{name: [HIDDEN, HIDDEN]}]}
    assert redacted({name: None}) == {name: None}


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


def test_the_file_is_plain_json_with_versions(tmp_path):
    write_provenance(tmp_path, {**HARMLESS, "hf_hub_token": "s3cret", "path": tmp_path, "note": "ünï\ud800"})
    record = json.loads((tmp_path / RECIPE_FILE).read_text())
    assert "s3cret" not in (tmp_path / RECIPE_FILE).read_text()
    assert record["recipe"]["path"] == str(tmp_path)
    assert record["versions"] == package_versions()
    assert {"python", "sepo", "torch", "transformers"} <= set(record["versions"])
