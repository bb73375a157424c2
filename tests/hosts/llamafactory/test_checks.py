"""Invalid input for `sepo train`: one line, exit status 2, and no model weights are read."""

import json

import pytest

from sepo.cli import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory.checks import check_policy
from tests.support.hub import LocalModels
from tests.support.recipes import sepo_recipe, write


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
    """Any attempt to load a model's weights fails the test."""
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)


def refused(capsys, recipe, folder, *overrides):
    status = main(["train", str(write(recipe, folder / "recipe.yaml")), *overrides])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sepo: error:")]
    assert status == 2
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"selct_ratio": 0.3}, ["unknown key 'selct_ratio'", "'select_ratio'"]),
        ({"select_ratio": 1.5}, ["select_ratio is 1.5"]),
        ({"oracle_model": None}, ["no oracle is named"]),
        ({"dataset": "tiny_plain"}, ["dataset 'tiny_plain' has no pairs", '"ranking": true']),
        ({"dataset": "nothing"}, ["Undefined dataset nothing"]),
        ({"dataset_dir": "/no/such/folder"}, ["/no/such/folder"]),
        ({"eval_dataset": "tiny_plain"}, ["dataset 'tiny_plain' has no pairs"]),
        ({"stage": "sepoo"}, ["unknown stage 'sepoo'", "'sepo'"]),
        ({"pref_loss": "hinge"}, ["pref_loss is 'hinge'"]),
        ({"model_name_or_path": "./no/such/model"}, ["model_name_or_path", "./no/such/model"]),
        ({"oracle_model": "/no/such/oracle"}, ["oracle_model", "/no/such/oracle"]),
        ({"oracle_base_model": "no-such/base"}, ["oracle_base_model", "no-such/base"]),
        ({"oracle_model_adapters": "no/adapter"}, ["oracle_model_adapters", "no/adapter"]),
        ({"treg_alpha": 0.1, "treg_eval_model": "./no/such/judge"}, ["treg_eval_model", "./no/such/judge"]),
        ({"treg_eval_model": "./no/such/judge"}, ["no token-reward regularizer is on"]),
        (
            {"moe_aux_loss_coef": 0.001},
            ["model_name_or_path is", "type llama has no experts", "remove moe_aux"],
        ),
        ({"moe_aux_loss_coef": -1}, ["moe_aux_loss_coef is -1"]),
    ],
)
def test_refused_before_anything_is_loaded(world, tmp_path, capsys, overrides, words):
    line = refused(capsys, sepo_recipe(world, tmp_path / "out", **overrides), tmp_path)
    for word in words:
        assert word in line


def test_a_full_model_is_not_an_adapter(world, tmp_path, capsys):
    recipe = sepo_recipe(world, tmp_path / "out", oracle_model_adapters=str(world / "oracle"))
    assert "it holds a full model" in refused(capsys, recipe, tmp_path)


def test_missing_data_file(world, tmp_path, capsys):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"gone": {"file_name": "gone.json", "ranking": True}}))
    recipe = sepo_recipe(world, tmp_path / "out", dataset="gone", dataset_dir=str(tmp_path))
    assert "gone.json does not exist" in refused(capsys, recipe, tmp_path)


MESSAGES = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
COLUMNS = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
LISTS = {"chosen": MESSAGES, "rejected": MESSAGES}


@pytest.mark.parametrize(
    ("content", "entry", "words"),
    [
        ("", {}, ["dataset 'd' has no rows", "d.json is empty"]),
        ("[]", {}, ["dataset 'd' has no rows"]),
        ('[{"chosen": "A",', {}, ["d.json cannot be read as json"]),
        ('{"chosen": "A"}\n{"chosen"', {}, ["d.json cannot be read as json: line 2"]),
        (b"\xff\xfe\x00", {}, ["d.json cannot be read as json", "codec can't decode"]),
        ("[1, 2]", {}, ["d.json has the row 1; an object is expected"]),
        ('{"chosen": "A"}\nnull', {}, ["d.json has the row null; an object is expected"]),
        ([LISTS], {}, ["chosen is a list of messages", "'alpaca' does not read", '"formatting": "messages"']),
        ([LISTS], {"formatting": "sharegpt"}, ["chosen is a list of messages", '"formatting": "messages"']),
        ([{"q": "Q", "chosen": "A", "rejected": "B"}], {}, ["does not name the columns", "columns are q, chosen"]),
        (
            [{"q": "Q", "chosen": "A", "rejected": "B"}], {"columns": COLUMNS},
            ["has no column instruction, which formatting 'alpaca' reads", "q, chosen, rejected"],
        ),
        (
            [{"q": "Q", "better": "A", "rejected": "B"}], {"columns": COLUMNS},
            ["has no column chosen", "q, better, rejected"],
        ),
        ([{"better": MESSAGES}], {"formatting": "messages"}, ["has no column chosen"]),
        (
            [LISTS],
            {"formatting": "messages", "columns": {"chosen": "chosen", "rejected": "rejected", "prompt": "ask"}},
            ["has no column ask"],
        ),
        ([LISTS], {"formatting": "message"}, ["formatting is 'message'", "alpaca, sharegpt, openai, messages"]),
        ([LISTS], {"columns": ["chosen"]}, ["its entry in dataset_info.json is not valid"]),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_files_that_hold_no_pairs(world, tmp_path, capsys, content, entry, words):
    file = tmp_path / "d.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": {"file_name": "d.json", "ranking": True, **entry}}))
    line = refused(capsys, sepo_recipe(world, tmp_path / "out", dataset="d", dataset_dir=str(tmp_path)), tmp_path)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.parquet", b"not parquet", ["d.parquet cannot be read as parquet"]),
        ("d.xml", b"<a/>", ["has files of the types .xml, expected one of arrow, csv, json"]),
        ("d", None, ["the directory", "is empty"]),
    ],
)
def test_files_of_other_types(world, tmp_path, capsys, name, content, words):
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": {"file_name": name, "ranking": True}}))
    line = refused(capsys, sepo_recipe(world, tmp_path / "out", dataset="d", dataset_dir=str(tmp_path)), tmp_path)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"d": 3}', '{"d": {"file_name": 3}}', '{"d": {"ranking": true}}', '{"d": null}']
)
def test_a_declaration_that_is_not_valid(world, tmp_path, capsys, content):
    (tmp_path / "dataset_info.json").write_text(content)
    recipe = sepo_recipe(world, tmp_path / "out", dataset="d", dataset_dir=str(tmp_path))
    assert "dataset_info.json" in refused(capsys, recipe, tmp_path)


def test_data_sets_of_the_hub_without_a_declaration(world, tmp_path, capsys):
    recipe = sepo_recipe(world, tmp_path / "out", dataset="some/pairs", dataset_dir="ONLINE")
    line = refused(capsys, recipe, tmp_path)
    assert "dataset_dir is ONLINE" in line
    assert '"hf_hub_url": "some/pairs", "ranking": true, "formatting": "messages"' in line


@pytest.mark.parametrize("lines", [False, True])
def test_the_beginning_of_a_large_file_is_enough(tmp_path, lines):
    from sepo.hosts.llamafactory.data_files import first_rows

    rows = [{"chosen": "A" * 40_000, "rejected": [1, {"x": "B,]"}]}] * 40
    path = tmp_path / "d.json"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1))
    found = first_rows(path, name="d")
    assert 20 < len(found.rows) < 40
    assert not found.whole
    assert found.rows[-1] == rows[0]
    path.write_text("\n".join(map(json.dumps, rows[:3])) if lines else json.dumps(rows[:3], indent=1))
    assert first_rows(path, name="d") == (rows[:3], True)
    path.write_text(json.dumps({"chosen": ["A"] * 9}, indent=1))  # columns instead of rows: the loader reads these
    assert first_rows(path, name="d") is None
    path.write_text(json.dumps([{"chosen": "A" * 2**21}]))
    assert first_rows(path, name="d") is None


def test_parquet_files_are_looked_at(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sepo.hosts.llamafactory.data_files import first_rows

    pq.write_table(pa.Table.from_pylist([LISTS] * 3), tmp_path / "d.parquet")
    assert first_rows(tmp_path / "d.parquet", name="d") == ([LISTS] * 3, True)
    (tmp_path / "d.csv").write_text("chosen,rejected\n")
    assert first_rows(tmp_path / "d.csv", name="d") is None


def test_missing_recipe(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "none.yaml"]) == 2
    assert f"recipe 'none.yaml' does not exist (from {tmp_path})" in capsys.readouterr().err


def test_overrides_are_checked_too(world, tmp_path, capsys):
    assert "select_ratio is 2" in refused(capsys, sepo_recipe(world, tmp_path / "out"), tmp_path, "select_ratio=2")


def test_oracle_with_another_tokenizer(world, tmp_path):
    from transformers import AutoTokenizer

    from sepo.errors import SepoError
    from sepo.recipe.model_specs import ModelSpec
    from sepo.scoring.hub import HubAccess
    from sepo.scoring.model_files import check_tokenizers
    from tests.support import tiny

    policy = AutoTokenizer.from_pretrained(world / "policy")
    check_tokenizers(policy, ModelSpec(str(world / "oracle")), key="oracle_model", access=HubAccess())
    tiny.tokenizer(["completely other words make other merges zebra quartz"] * 9).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((world / "oracle" / "config.json").read_text())
    with pytest.raises(SepoError, match=r"has another tokenizer than the policy: .* tokens, expected "):
        check_tokenizers(policy, ModelSpec(str(tmp_path / "other")), key="oracle_model", access=HubAccess())


def test_oracle_with_the_weights_of_its_base(world, tmp_path):
    import shutil

    from transformers import AutoTokenizer

    from sepo.errors import SepoError
    from sepo.recipe.model_specs import ModelSpec, OracleSpec
    from sepo.scoring.oracle import scoring_identity

    arguments = LocalModels(compute_dtype=None, template="chatml", cutoff_len=128)
    shutil.copytree(world / "base", tmp_path / "copy")
    spec = OracleSpec(oracle=ModelSpec(str(tmp_path / "copy")), base=ModelSpec(str(world / "base")))
    words = AutoTokenizer.from_pretrained(world / "policy")
    with pytest.raises(SepoError, match="hold the same weights"):
        scoring_identity(spec, tokenizer=words, model_args=arguments, data_args=arguments)


def test_names_are_those_of_the_hub_that_the_host_uses(monkeypatch, tmp_path, world):
    import modelscope

    given = {"model_name_or_path": "no-such/model", "cache_dir": str(tmp_path)}
    with pytest.raises(SepoError, match="'no-such/model' is neither a local directory"):
        check_policy(given)
    requested = []

    def snapshot_download(name, revision=None, cache_dir=None):
        requested.append((name, revision, cache_dir))
        return str(world / "policy")

    monkeypatch.setattr(modelscope, "snapshot_download", snapshot_download)
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    for _ in range(2):
        check_policy(given)
    assert requested == [("no-such/model", "master", str(tmp_path))]
    check_policy({**given, "model_revision": "v2"})
    assert requested[1:] == [("no-such/model", "v2", str(tmp_path))]
