"""`sepo credit` on the command line: data or a run's directory, output files, errors of one line."""

import argparse
import json

import pytest

from sepo.cli import main
from sepo.cli.credit import add_credit
from sepo.cli.credit_options import models_of, request_of
from sepo.errors import SepoError
from sepo.recipe.model_specs import ModelSpec
from sepo.runs.oracle_of_run import read_run
from sepo.score_store import ScoreStore


@pytest.fixture(scope="module")
def data(tmp_path_factory, marked_rows):
    path = tmp_path_factory.mktemp("credit") / "pairs.json"
    path.write_text(json.dumps(marked_rows))
    return path


@pytest.fixture
def run_folder(tmp_path, world):
    """The files of a run that describe its oracle."""
    identity = {"scorer": "oracle", "template": "chatml", "cutoff_len": 96, "compute_dtype": "None"}
    store = ScoreStore.open(
        root=tmp_path / "scores", identity=identity, rows=2, columns=("chosen_scores", "rejected_scores"), shard_rows=2
    )
    spec = {"adapters": [], "quantization_bit": None}
    settings = {
        "token_scorer": "oracle",
        "select": {"chosen_ratio": 0.4, "rejected_ratio": 0.2},
        "oracle": {name: {"model": str(world / name), **spec} for name in ("oracle",)}
        | {"base": {"model": str(world / "base"), **spec}},
        "token_scores": {"train": str(store.path)},
    }
    (tmp_path / "run" / "policy").mkdir(parents=True)
    (tmp_path / "run" / "policy" / "sepo_settings.json").write_text(json.dumps(settings))
    return tmp_path / "run"


def error(capsys, *words):
    assert main(["credit", *map(str, words)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("sepo: error: ")
    assert printed.count("\n") == 1
    return printed


def test_a_run_is_measured_with_its_own_settings(run_folder, world, data, tmp_path, capsys):
    """Oracle, base, template, cutoff and ratio are the run's; a pipeline's directory stands for its policy's."""
    found = read_run(run_folder)
    assert (found.template, found.cutoff_len, found.dtype, found.ratio) == ("chatml", 96, None, 0.2)
    files = ["-o", tmp_path / "out.json", "--figure", tmp_path / "out.png"]
    words = ["credit", run_folder, "--data", data, "--bootstrap", 20, *files]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert list(result["scorers"]) == ["oracle", "surprisal", "random"]
    assert result["models"]["oracle"]["model"] == str(world / "oracle")
    assert (result["reading"]["cutoff_len"], result["settings"]["ratio"]) == (96, 0.2)
    for piece in ("AUROC", "recall at 20%", "oracle - surprisal", "Wrong-Number", "12 rejected responses", "out.png"):
        assert piece in printed
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "already exists; name another file, or add --overwrite" in error(capsys, *words[1:])
    assert main([*map(str, words), "--overwrite", "--rows", "4", "--ratio", "0.5", "--scorers", "random"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["data"]["rows"] == 4


def test_a_run_with_several_oracles_is_measured_with_all(run_folder, world):
    file = run_folder / "policy" / "sepo_settings.json"
    settings = json.loads(file.read_text())
    second = {
        "oracle": {**settings["oracle"]["oracle"], "model": str(world / "policy")},
        "base": settings["oracle"]["base"],
    }
    several = {"members": [settings["oracle"], second], "scores": "centered", "checkpoints": None}
    file.write_text(json.dumps({**settings, "oracles": {**several, "base_checkpoints": False}}))
    found = read_run(run_folder)
    assert [oracle.oracle.model for oracle in found.oracles] == [str(world / "oracle"), str(world / "policy")]
    request = request_of(parsed("run"), found, "demo")
    assert request.models.oracles == found.oracles
    assert request.scorers == ["oracle", "oracle_centered", "surprisal", "random"]


def test_options_of_several_oracles():
    shared = [
        "--oracle-base",
        "b",
        "--oracle-adapters",
        "s,x",
        "--oracle-base-adapters",
        "s",
        "--oracle-adapters",
        "s,y@v",
    ]
    found = models_of(parsed(*shared), None)
    assert [oracle.oracle for oracle in found.oracles] == [
        ModelSpec("b", ("s", "x")), ModelSpec("b", ("s", "y"), None, None, (None, "v")),
    ]  # fmt: skip
    assert {oracle.base for oracle in found.oracles} == {ModelSpec("b", ("s",))}
    assert found.model == ModelSpec("b", ("s",))
    wrong = [
        "--oracle-model",
        "a",
        "--oracle-model",
        "c",
        "--oracle-model",
        "d",
        "--oracle-base",
        "e",
        "--oracle-base",
        "f",
    ]
    with pytest.raises(
        SepoError, match="--oracle-base is given 2 times, for 3 oracles; give it once, or once for each"
    ):
        models_of(parsed(*wrong), None)
    with pytest.raises(SepoError, match="name the same oracle twice"):
        models_of(parsed("--oracle-model", "a", "--oracle-model", "a", "--oracle-base", "b"), None)


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_credit(parser)
    return parser.parse_args(words)


def test_data_with_models_by_option(data, world, capsys):
    oracle = ["--oracle-model", world / "oracle", "--oracle-base", world / "base"]
    words = [data, "--model", world / "base", *oracle, "--template", "chatml", "--bootstrap", 5, "--text-tokens"]
    assert main(["credit", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert "oracle - surprisal" in printed
    assert "(the end of turn) are excluded" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.json"], "'nowhere.json' is not a file"),
        (["demo", "--oracle-adapters", "x"], "name the one that the oracle was trained from with --oracle-base"),
        (["demo", "--oracle-base", "x"], "--oracle-base is set without an oracle"),
        (["demo", "--adapters", "x"], "--adapters is set without --model"),
        (["demo", "--ref-adapters", "x"], "--ref-adapters is set without a model"),
        (["demo", "--model", "x", "--oracle-model", "x"], "are the same model"),
        (["demo", "--data", "demo"], "--data needs a run's directory"),
        (["demo", "--model", "x", "--ratio", "0"], "--ratio is 0.0"),
        (["demo", "--model", "x", "--cutoff-len", "1"], "--cutoff-len is 1"),
        (["demo", "--model", "x", "--rows", "0"], "--rows is 0"),
        (["demo", "--model", "x", "--bootstrap", "0"], "--bootstrap is 0"),
        (["demo", "--model", "x", "--batch-tokens", "0"], "--batch-tokens is 0"),
        (["demo"], "no model is given"),
        (["demo", "-o", "result.txt"], "the file ends in '.txt'; expected .json"),
        (["demo", "--figure", "nowhere/x.png"], "nowhere does not exist"),
        (["demo", "--figure", "x.jpeg"], "the file ends in '.jpeg'"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error(capsys, *words)


def test_directories_that_cannot_be_measured(tmp_path, run_folder, capsys):
    assert "is a directory without a sepo run" in error(capsys, tmp_path)
    settings = run_folder / "policy" / "sepo_settings.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "oracle": None, "token_scorer": "policy_ref"}))
    assert "had no oracle (its token_scorer is policy_ref)" in error(capsys, run_folder)
    for broken in ("{", "[]", '{"oracle": 4}', json.dumps({**values, "oracle": {"oracle": {}}})):
        settings.write_text(broken)
        assert "cannot be read" in error(capsys, run_folder)


def test_a_run_whose_store_is_gone_still_names_its_oracle(run_folder, world):
    settings = run_folder / "policy" / "sepo_settings.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "token_scores": {"train": "/gone"}, "select": None}))
    found = read_run(run_folder)
    assert found.oracle.oracle.model == str(world / "oracle")
    assert (found.template, found.cutoff_len, found.ratio) == (None, None, None)
    with pytest.raises(SepoError, match=r"has no sepo_settings\.json"):
        read_run(run_folder / "policy" / "none")


@pytest.mark.parametrize(
    ("select", "ratio"),
    [({}, 0.4), ({"rule": "mean"}, None), ({"count": "shorter"}, None), ({"rejected_ratio": 1.0}, None)],
)
def test_the_ratio_of_a_run_is_the_share_that_it_selects(run_folder, select, ratio):
    settings = run_folder / "policy" / "sepo_settings.json"
    values = json.loads(settings.read_text())
    select = {"chosen_ratio": 0.9, "rejected_ratio": 0.4, "rule": "floor", **select}
    settings.write_text(json.dumps({**values, "select": select}))
    assert read_run(run_folder).ratio == ratio


def test_the_oracle_of_a_run_is_measured_at_the_commits_that_the_run_used(run_folder):
    file = run_folder / "policy" / "sepo_settings.json"
    settings = json.loads(file.read_text())
    settings["oracle"]["oracle"] |= {"model": "acme/oracle", "adapters": ["acme/adapter"], "revision": "v2"}
    settings["commits"] = {"acme/oracle": {"main": "a" * 40, "v2": "b" * 40}, "acme/adapter": {"main": "c" * 40}}
    file.write_text(json.dumps(settings))
    oracle = read_run(run_folder).oracle
    assert (oracle.oracle.revision, oracle.oracle.adapter_revisions) == ("b" * 40, ("c" * 40,))
    assert oracle.base.revision is None  # a local directory


def test_models_by_option_have_revisions(tmp_path):
    parser = argparse.ArgumentParser()
    add_credit(parser)
    (tmp_path / "a@b").mkdir()
    words = ["demo", "--model", "acme/m@v1", "--adapters", "acme/a@v2,acme/b", "--ref-model", str(tmp_path / "a@b")]
    models = models_of(parser.parse_args(words), None)
    assert models.model == ModelSpec("acme/m", ("acme/a", "acme/b"), None, "v1", ("v2", None))
    assert models.reference == ModelSpec(str(tmp_path / "a@b"))


def test_help_does_not_need_torch(capsys):
    import argparse

    parser = argparse.ArgumentParser()
    add_credit(parser)
    assert "rejected_error_spans" in parser.format_help()
