"""Real runs of `sepo score`, use of their stores by `sepo train`, and exports that are read back."""

import json
import os
import re
import shutil
import sys

import pytest
from safetensors.torch import load_file, save_file

from sepo.errors import SepoError
from sepo.hosts.llamafactory.export import export_recipe
from sepo.hosts.llamafactory.recipe import check_recipe, refuse_without_scoring
from sepo.score_store import ScoreStore
from tests.support.recipes import environment, run, sepo_recipe, write
from tests.support.rows import prepared

SEPO = [sys.executable, "-m", "sepo"]
SIDES = ("chosen", "rejected")


def sepo(command, recipe, folder, *words, name="recipe.yaml", **options):
    return run([*SEPO, *command.split(), write(recipe, folder / name), *words], cwd=folder, **options)


def stores(folder):
    return {path.name: {f.name: f.read_bytes() for f in path.iterdir()} for path in sorted(folder.glob("[0-9a-f]*"))}


def error_line(done):
    (line,) = [line for line in done.stderr.splitlines() if "sepo: error:" in line]
    assert "Traceback" not in done.stderr
    return line


@pytest.fixture(scope="module")
def scored(world, tmp_path_factory):
    """Score a recipe whose policy has no weights, so that loading it would be an error."""
    folder = tmp_path_factory.mktemp("scored")
    shutil.copytree(world / "policy", folder / "hollow", ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = sepo_recipe(world, folder / "out", val_size=0.25, model_name_or_path=str(folder / "hollow"))
    return folder, recipe, sepo("score", recipe, folder, fresh=True)


@pytest.mark.host
def test_scores_need_no_policy_or_output_directory_and_are_summarized(scored):
    folder, _, done = scored
    assert sorted(path.name for path in folder.iterdir()) == ["hollow", "recipe.yaml", "scores"]
    made = stores(folder / "scores")
    assert len(made) == 2
    assert all({"texts.parquet", "texts.json"} <= set(files) for files in made.values())
    text = " ".join(done.stdout.split())
    for piece in ("token scores of train: 18 pairs", "token scores of eval: 6 pairs", "50 %", "selected 30%", *made):
        assert piece in text
    assert "scoring train: 100%" in done.stderr
    assert "pair/s" in done.stderr


@pytest.mark.host
def test_two_processes_make_the_same_store(scored, tmp_path):
    folder, recipe, _ = scored
    port = str(20000 + os.getpid() % 20000)
    env = environment(FORCE_TORCHRUN="1", NPROC_PER_NODE="2", MASTER_PORT=port)
    done = sepo("score", {**recipe, "token_scores_dir": str(tmp_path / "scores")}, tmp_path, env=env, forks=True)
    assert stores(tmp_path / "scores") == stores(folder / "scores")
    assert done.stdout.count("token scores of train: 18 pairs") == 1


@pytest.mark.host
def test_training_another_policy_with_other_settings_finds_the_scores(scored, world, tmp_path):
    folder, recipe, _ = scored
    before = stores(folder / "scores")
    for path in (folder / "scores").glob("[0-9a-f]*/texts.*"):  # as written by an older version
        path.unlink()
    other = {**recipe, "model_name_or_path": str(world / "policy"), "select_ratio": 0.5, "learning_rate": 1e-4,
             "output_dir": str(tmp_path / "elsewhere"), "max_steps": 1}  # fmt: skip
    done = sepo("train", other, tmp_path)
    assert (done.stdout + done.stderr).count("nothing to score") >= 2
    assert "rows missing" not in done.stdout + done.stderr
    assert stores(folder / "scores") == before


@pytest.mark.host
@pytest.mark.parametrize(("part", "ending"), [("train", "jsonl"), ("eval", "parquet")])
def test_an_export_is_a_data_set_with_the_same_scores(scored, world, tmp_path, part, ending):
    """Scores are aligned to the same tokens, which gives the same selection; texts and offsets match the responses."""
    folder, recipe, _ = scored
    from transformers import AutoTokenizer

    output = tmp_path / f"exported.{ending}"
    export_recipe(write(recipe, tmp_path / "recipe.yaml"), [], output=output, part=part)
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "system": "system"}
    info = {"file_name": output.name, "formatting": "sharegpt", "ranking": True, "columns": columns}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": info}))
    rows = prepared(tmp_path, AutoTokenizer.from_pretrained(world / "policy"))["train_dataset"]
    tables = [ScoreStore.at(path).table() for path in (folder / "scores").glob("[0-9a-f]*")]
    (table,) = [table for table in tables if table.num_rows == len(rows)]
    for side in SIDES:
        assert list(rows[f"{side}_scores"]) == table[f"{side}_scores"].to_pylist()
    if ending == "jsonl":
        for line in output.read_text().splitlines():
            row = json.loads(line)
            for side in SIDES:
                answer = row[side]["value"]
                pieces = [answer[start:end] for start, end in row[f"{side}_offsets"]]
                assert "".join(pieces) == answer
                assert pieces[:-2] == row[f"{side}_tokens"][:-2]  # the last two are the end of turn
                assert len({len(row[f"{side}_{what}"]) for what in ("tokens", "token_ids", "scores", "offsets")}) == 1


@pytest.mark.host
@pytest.mark.parametrize(
    ("changes", "part", "message"),
    [
        (
            {"token_scores_dir": "none"},
            "train",
            "token scores of train are not all in none; run `sepo score` with this",
        ),
        ({}, "test", "--part is test, but this recipe has train, eval; use one of these"),
        ({"stage": "minor_dpo", "oracle_model": None, "oracle_base_model": None}, "train", "scores nothing"),
    ],
)
def test_missing_scores_are_not_exported(scored, tmp_path, monkeypatch, changes, part, message):
    monkeypatch.chdir(tmp_path)
    recipe = {name: value for name, value in {**scored[1], **changes}.items() if value is not None}
    with pytest.raises(SepoError, match=re.escape(message)):
        export_recipe(write(recipe, tmp_path / "recipe.yaml"), [], output=tmp_path / "x.jsonl", part=part)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("stage", "message"), [("minor_dpo", "its token_scorer is none"), ("dpo", "its stage is LLaMA-Factory's own")]
)
def test_a_recipe_that_scores_nothing_is_refused(world, tmp_path, stage, message):
    no_oracle = {"oracle_model": None, "oracle_base_model": None, "token_scores_dir": None}
    settings = check_recipe(sepo_recipe(world, tmp_path / "out", stage=stage, **no_oracle))[1]
    with pytest.raises(SepoError, match=f"this recipe scores nothing.*{message}"):
        refuse_without_scoring(settings)


@pytest.mark.host
def test_a_full_disk_is_one_line_and_the_store_resumes(scored, tmp_path, small_disk):
    folder, recipe, _ = scored
    mounted, enlarge = small_disk
    place = mounted(16)
    (place / ".ballast").write_bytes(bytes(4096))
    small = {**recipe, "token_scores_dir": str(place)}
    done = sepo("score", small, tmp_path, expect=2)
    assert "No space left on device; free space or set another token_scores_dir" in error_line(done)
    assert enlarge(4096)
    sepo("score", small, tmp_path)
    assert stores(place) == stores(folder / "scores")


@pytest.fixture
def adapter_folder(tmp_path):
    """Return a function that writes the files of an adapter that determine its fingerprint."""

    def make(name, value):
        import torch

        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"r": 4}')
        save_file({"a": torch.tensor([value])}, folder / "adapter_model.safetensors")
        assert load_file(folder / "adapter_model.safetensors")["a"].item() == value
        return str(folder)

    return make


def test_adapters_and_quantization_are_part_of_what_a_model_is(world, adapter_folder):
    from sepo.recipe.model_specs import ModelSpec
    from sepo.scoring.hub import HubAccess
    from sepo.scoring.stored_columns import spec_identity

    oracle = str(world / "oracle")
    one, copy, other = (adapter_folder(*made) for made in (("one", 1.0), ("copy", 1.0), ("other", 2.0)))

    def identity(*adapters, bits=None):
        spec = ModelSpec(oracle, adapters, bits)
        return json.dumps(spec_identity(spec, key="oracle_model", access=HubAccess()))

    assert identity(one) == identity(copy)
    different = [identity(), identity(one), identity(other), identity(one, other), identity(other, one)]
    different += [identity(bits=4), identity(bits=8)]
    assert len(set(different)) == len(different)
