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


@pytest.fixture
def all_formats(tmp_path):
    """Return a directory with the data sets `alpaca`, `sharegpt`, `openai` and `messages`, of two pairs each."""
    folder = tmp_path / "formats"
    folder.mkdir()

    def turn(role, text):
        return {"role": role, "content": text}

    entries, texts = {}, [("Hi?", "Yes.", "No."), ("Who?", "The 1st.", "The 2nd.")]
    for name in ("alpaca", "sharegpt", "openai", "messages"):
        rows, columns = [], {"chosen": "better", "rejected": "worse"}
        for prompt, better, worse in texts:
            prompt = f"{name}: {prompt}"
            if name == "alpaca":
                rows.append({"instruction": prompt, "better": better, "worse": worse})
                columns |= {"prompt": "instruction"}
            elif name == "messages":  # whole conversations with calls of a tool
                before = [turn("system", "Be brief."), turn("user", prompt)]
                call = {"type": "function", "function": {"name": "clock", "arguments": "{}"}}
                called = [{**turn("assistant", ""), "tool_calls": [call]}, turn("tool", "12:00")]
                rows.append({"better": [*before, *called, turn("assistant", better)],
                             "worse": [*before, *called, turn("assistant", worse)]})  # fmt: skip
            else:
                tags = {"user": "human", "assistant": "gpt"} if name == "sharegpt" else {}
                keys = ("from", "value") if tags else ("role", "content")
                turns = [dict(zip(keys, (tags.get(role, role), text), strict=True))
                         for role, text in (("user", prompt), ("assistant", better), ("assistant", worse))]  # fmt: skip
                rows.append({"turns": turns[:1], "better": turns[1], "worse": turns[2]})
                columns |= {"messages": "turns"}
        entries[name] = {"file_name": f"{name}.json", "formatting": name, "ranking": True, "columns": columns}
        if name == "openai":
            tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
            entries[name]["tags"] = tags
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("val_size", [0.0, 0.25])
def test_exchanged_pairs_differ_in_the_order_of_the_responses_alone(all_formats, tmp_path, val_size):
    """They are declared over the file of the pairs, whatever formats the data sets of the recipe have."""
    from sepo.hosts.llamafactory.sample import REVERSED_PAIRS, declare_derived, training_rows

    out, names = tmp_path / "out", "alpaca,sharegpt,openai,messages"
    recipe = {"dataset": names, "dataset_dir": str(all_formats), "template": "qwen3_nothink", "val_size": val_size}
    assert write_sample(recipe, ratio=1.0, folder=out) == 8 - 8 * val_size
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    declare_derived(REVERSED_PAIRS, out)
    declared = (out / "dataset_info.json").read_bytes()
    declare_derived(REVERSED_PAIRS, out)
    assert (out / "dataset_info.json").read_bytes() == declared
    assert {path.name for path in out.iterdir()} == set(files)  # no copy of the data
    read = {"dataset_dir": str(out), "template": "qwen3_nothink"}
    pairs = list(training_rows({**read, "dataset": "oracle_pairs"}))
    exchanged = list(training_rows({**read, "dataset": REVERSED_PAIRS}))
    assert exchanged == [{**row, "_response": row["_response"][::-1]} for row in pairs]
    assert all(row["_response"][0] != row["_response"][1] for row in pairs)
    assert write_sample(recipe, ratio=1.0, folder=out) == len(pairs)  # drawn again over its own data sets
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


@pytest.mark.parametrize("content", [None, "[]", '{"oracle_answers": {}}', '{"oracle_pairs": {"columns": {}}}', "{"])
def test_exchanged_pairs_need_a_sample(tmp_path, content):
    from sepo.errors import SepoError
    from sepo.hosts.llamafactory.sample import REVERSED_PAIRS, declare_derived

    if content is not None:
        (tmp_path / "dataset_info.json").write_text(content)
    with pytest.raises(SepoError, match="does not declare the data set 'oracle_pairs' of the step 'sample'"):
        declare_derived(REVERSED_PAIRS, tmp_path)


def test_other_data_sets_are_not_overwritten(world, tmp_path):
    from sepo.errors import SepoError

    (tmp_path / "dataset_info.json").write_text('{"mine": {}}')
    with pytest.raises(SepoError, match="lists other data sets"):
        sampled(world, tmp_path)
    assert (tmp_path / "dataset_info.json").read_text() == '{"mine": {}}'
