"""Sample of the pairs for base and oracle: seeded, in the host's format, without validation rows."""

import json

import pytest

from sepo.hosts.llamafactory.sample import write_sample


def sampled(world, folder, *, ratio=0.5, **overrides):
    recipe = {"dataset": "tiny_pairs", "dataset_dir": str(world / "data"), "seed": 1, **overrides}
    count = write_sample(recipe, ratio=ratio, folder=folder)
    pairs = json.loads((folder / "oracle_pairs.json").read_text())
    assert len(pairs) == count
    return pairs


def prompts(pairs):
    return [row["conversations"][0]["value"] for row in pairs]


def test_the_seed_decides(world, tmp_path):
    first, again = sampled(world, tmp_path / "a"), sampled(world, tmp_path / "b")
    assert len(first) == 12
    assert first == again
    assert prompts(first) != prompts(sampled(world, tmp_path / "c", seed=2))


def test_ratio_one_is_every_pair_in_its_order(world, tmp_path):
    from tests.support.tiny import pairs

    written = sampled(world, tmp_path, ratio=1.0)
    assert [(row["conversations"], row["chosen"], row["rejected"]) for row in written] == [
        (row["conversations"], row["chosen"], row["rejected"]) for row in pairs(24)
    ]


def test_validation_rows_are_left_out(world, tmp_path):
    """The split is the host's own, with the seed of the policy's run."""
    from llamafactory.data.data_utils import split_dataset

    from sepo.hosts.llamafactory.sample import DataArguments, training_rows

    recipe = {"dataset": "tiny_pairs", "dataset_dir": str(world / "data"), "seed": 1}
    everything = training_rows(recipe)
    arguments = DataArguments(dataset="tiny_pairs", dataset_dir=str(world / "data"), val_size=0.25)
    held_out = split_dataset(everything, None, arguments, seed=1)[1]["validation"]
    held = {row["_prompt"][0]["content"] for row in held_out}
    assert len(held) == 6
    written = sampled(world, tmp_path, ratio=1.0, val_size=0.25)
    assert len(written) == 18
    assert not held & set(prompts(written))


def test_the_host_reads_the_sample(world, tmp_path):
    from sepo.hosts.llamafactory.sample import training_rows

    written = sampled(world, tmp_path, ratio=0.25)
    rows = training_rows({"dataset": "oracle_pairs", "dataset_dir": str(tmp_path)})
    assert [row["_prompt"][0]["content"] for row in rows] == prompts(written)
    assert [row["_response"][1]["content"] for row in rows] == [row["rejected"]["value"] for row in written]
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert "ranking" not in info["oracle_answers"]


@pytest.mark.parametrize("field", ["system", "tools"])
def test_system_and_tools_are_kept(tmp_path, field):
    tools = json.dumps([{"name": "clock", "description": "d", "parameters": {}}])
    value = tools if field == "tools" else "Be brief."
    source = tmp_path / "source"
    source.mkdir()
    row = {
        "conversations": [{"from": "human", "value": "Hi?"}], "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": "No."}, field: value,
    }  # fmt: skip
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", field: field}
    (source / "rows.json").write_text(json.dumps([row]))
    (source / "dataset_info.json").write_text(
        json.dumps({"r": {"file_name": "rows.json", "formatting": "sharegpt", "ranking": True, "columns": columns}})
    )
    write_sample({"dataset": "r", "dataset_dir": str(source)}, ratio=1.0, folder=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "oracle_answers.json").read_text())[0][field] == value


def test_other_data_sets_are_not_overwritten(world, tmp_path):
    from sepo.errors import SepoError

    (tmp_path / "dataset_info.json").write_text('{"mine": {}}')
    with pytest.raises(SepoError, match="lists other data sets"):
        sampled(world, tmp_path)
    assert (tmp_path / "dataset_info.json").read_text() == '{"mine": {}}'
