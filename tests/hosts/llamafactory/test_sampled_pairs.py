"""`sepo pairs` from recipe to data set: bytes after kills and on two ranks, sources of prompts, judges, errors."""

import json
import os
import signal
import time

import pytest

from sepo.cli import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory.sampled_pairs import make_pairs
from sepo.pairs import parts
from tests.support import tiny, warm
from tests.support.recipes import BIN, environment, host_recipe, logged, run, sepo_recipe, sepo_train, write

pytestmark = pytest.mark.host

PAIRS = {
    "pairs_samples": 4, "pairs_max_new_tokens": 8, "pairs_temperature": 1.0, "pairs_batch_tokens": 300,
    "judge": "regex", "expected_column": "answer",
}  # fmt: skip
OUTPUTS = ("pairs.jsonl", "samples.jsonl", "dataset_info.json", "summary.json", "pairs_settings.json")


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """Return a directory with the policy `ending` and the data set `tiny_pairs` with expected answers."""
    root = tmp_path_factory.mktemp("pairs")
    tiny.save_ending(root / "ending", over=world / "policy")
    tiny.save_pairs(root / "data", count=12)
    for name in ("tiny_pairs", "tiny_plain"):
        rows = json.loads((root / "data" / f"{name}.json").read_text())
        for index, row in enumerate(rows):
            row["answer"] = "[a-m]" if index % 6 else None
        rows[3]["conversations"] = rows[1]["conversations"]
        (root / "data" / f"{name}.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "ERROR")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.chdir(tmp_path)


def recipe_of(place, folder, **keys):
    training = {"oracle_model": None, "oracle_base_model": None, "stage": "minor_dpo", "token_scores_dir": None}
    made = sepo_recipe(place, folder / "out", model_name_or_path=str(place / "ending"), **training)
    return {**made, **PAIRS, "pairs_dir": str(folder / "pairs"), **keys}


def outputs(folder):
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """Return the files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        make_pairs(recipe_of(place, folder))
    return outputs(folder / "pairs")


def test_pairs_from_recipe_to_files(world, place, tmp_path, whole, capsys):
    recipe = recipe_of(place, tmp_path)
    write(recipe, tmp_path / "recipe.yaml")
    assert main(["pairs", "recipe.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "36 responses to 9 prompts of tiny_pairs, by judge regex" in printed
    assert f"dataset_dir: {tmp_path / 'pairs'}, dataset: pairs" in printed
    assert outputs(tmp_path / "pairs") == whole
    assert not (tmp_path / "pairs" / ".parts").exists()
    summary = json.loads(whole["summary.json"])
    assert summary["rows"] == 12
    assert (summary["duplicate_prompts"], summary["without_expected"], summary["prompts"]) == (1, 2, 9)
    assert summary["pairs"] + summary["ties"] + summary["identical"] + summary["unfinished"] == 9
    assert summary["pairs"] >= 2
    samples = lines(tmp_path / "pairs" / "samples.jsonl")
    assert [line["id"] for line in samples] == [index for index in range(12) if index not in (0, 3, 6)]
    pairs = iter(lines(tmp_path / "pairs" / "pairs.jsonl"))
    for line in samples:
        assert len(line["responses"]) == 4
        for each in line["responses"]:
            assert each["tokens"] <= 8 - each["finished"]
            assert each["reward"] == float(bool(set(each["text"]) & set("abcdefghijklm")))
        if line["no_pair"] is None:
            row = next(pairs)
            assert row["messages"] == line["messages"]
            chosen, rejected = (line["responses"][line[side]] for side in ("chosen", "rejected"))
            assert (row["chosen"]["content"], row["rejected"]["content"]) == (chosen["text"], rejected["text"])
            assert chosen["finished"]
    assert next(pairs, None) is None

    # A finished directory is only read, and other settings are refused.
    with pytest.MonkeyPatch.context() as patch:
        module = "sepo.hosts.llamafactory.sampled_pairs.load_scoring_model"
        patch.setattr(module, lambda *_, **__: pytest.fail("a model was loaded"))
        assert main(["pairs", "recipe.yaml"]) == 0
        assert "finished before: " in capsys.readouterr().out
        for words, message in (
            (["pairs_seed=4"], "has samples with pairs_seed 3, and this run has 4"),
            (["pairs_samples=3"], "has samples with pairs_samples 4, and this run has 3"),
            (["pairs_batch_tokens=301"], "has samples with pairs_batch_tokens 300, and this run has 301"),
            (["judge=contains"], 'has samples with judge {"judge": "regex"'),
            (["max_samples=6"], 'has samples with prompts {"number": 9'),
            ([f"model_name_or_path={world / 'policy'}"], 'has samples with model {"model": "'),
        ):
            assert main(["pairs", "recipe.yaml", *words]) == 2
            assert message in capsys.readouterr().err
    assert outputs(tmp_path / "pairs") == whole


def test_the_samples_are_those_of_sepo_sample(place, tmp_path, whole):
    """Each sample has the random numbers that it has there, whatever the batches."""
    write({key: value for key, value in recipe_of(place, tmp_path).items() if key not in PAIRS and key != "pairs_dir"},
          tmp_path / "recipe.yaml")  # fmt: skip
    words = ["--samples", "4", "--max-new-tokens", "8", "--temperature", "1", "--seed", "3"]
    assert main(["sample", "recipe.yaml", *words]) == 0
    sampled = {line["id"]: line["responses"] for line in lines(tmp_path / "sample_output" / "samples.jsonl")}
    for line in map(json.loads, whole["samples.jsonl"].splitlines()):
        found = [{name: each[name] for name in ("text", "tokens", "finished")} for each in line["responses"]]
        assert found == sampled[line["id"]]


def test_interrupted_runs_have_the_bytes_of_an_undisturbed_one(place, tmp_path, whole, monkeypatch):
    """Interrupted before and after the writes of samples and rewards, and between the final files."""
    recipe, write_file = recipe_of(place, tmp_path), parts.replace_durably
    from sepo.pairs import directory

    writes = 0
    for stop, after in ((1, False), (3, True), (2, False), (5, False), (2, True), (3, False)):
        left = stop

        def interrupted(*, path, after=after, **kwargs):
            nonlocal left, writes
            left -= 1
            if left == 0 and not after:
                raise KeyboardInterrupt
            write_file(path=path, **kwargs)
            writes += 1
            if left == 0:
                raise KeyboardInterrupt

        for module in (parts, directory):
            monkeypatch.setattr(module, "replace_durably", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_pairs(recipe)
    for module in (parts, directory):
        monkeypatch.setattr(module, "replace_durably", write_file)
    assert writes == 12  # four batches of samples and four of rewards, then samples.jsonl and pairs.jsonl twice
    assert not (tmp_path / "pairs" / "summary.json").exists()
    make_pairs(recipe)
    assert outputs(tmp_path / "pairs") == whole


def test_a_killed_process_is_continued(place, tmp_path, whole):
    recipe = recipe_of(place, tmp_path)
    words = [BIN / "sepo", "pairs", write(recipe, tmp_path / "recipe.yaml")]
    kills, deadline = 0, time.monotonic() + 120
    stored = tmp_path / "pairs" / ".parts"
    for wanted in (1, 4):
        with open(tmp_path / "log", "w") as log:
            process = warm.start(words, cwd=tmp_path, env=environment(), stdout=log, stderr=log)
            while process.poll() is None and time.monotonic() < deadline:
                if len(list(stored.glob("*.json"))) >= wanted:
                    os.kill(process.pid, signal.SIGKILL)
                    break
                time.sleep(0.003)
            process.wait(60)
            kills += process.returncode == -signal.SIGKILL
    assert kills == 2
    run(words, cwd=tmp_path)
    assert outputs(tmp_path / "pairs") == whole


def test_two_ranks_have_the_bytes_of_one_process(place, tmp_path, whole):
    recipe = write(recipe_of(place, tmp_path), tmp_path / "recipe.yaml")
    port = str(20000 + os.getpid() % 20000)
    words = [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", port, "-m", "sepo", "pairs", recipe]
    done = run(words, cwd=tmp_path, forks=True)
    assert outputs(tmp_path / "pairs") == whole
    assert done.stdout.count("36 responses to 9 prompts") == 1


def test_the_data_set_trains_in_the_hosts_dpo_and_in_a_sepo_stage(place, tmp_path):
    recipe = recipe_of(place, tmp_path)
    make_pairs(recipe)
    data = {"dataset_dir": str(tmp_path / "pairs"), "dataset": "pairs", "max_steps": 1,
            "model_name_or_path": str(place / "ending")}  # fmt: skip
    sepo_train({**recipe, **data}, tmp_path)
    log = run([BIN / "sepo", "train", write({**host_recipe(place, tmp_path / "dpo", **data), **PAIRS},
              tmp_path / "dpo.yaml")], cwd=tmp_path).stderr  # fmt: skip
    assert "are set, but have" not in log
    for output in ("out", "dpo"):
        assert logged(tmp_path / output)[0]["loss"] == pytest.approx(0.6931, abs=2e-3)


def chats():
    """Return SFT rows: a conversation of two turns with a system prompt, one with tools, and one without."""
    turns = [{"from": "human", "value": "Name a spider."}, {"from": "gpt", "value": "It is Ann."}]
    tools = '[{"name": "legs", "description": "", "parameters": {"type": "object", "properties": {}}}]'
    call = [
        {"from": "human", "value": "Legs?"},
        {"from": "function_call", "value": '{"name": "legs", "arguments": {}}'},
        {"from": "observation", "value": "8"},
        {"from": "gpt", "value": "It has 8."},
    ]
    return [
        {"conversations": [*turns, {"from": "human", "value": "And its legs?"}, {"from": "gpt", "value": "8"}],
         "system": "Be brief.", "tools": ""},
        {"conversations": call, "system": "", "tools": tools},
        {"conversations": turns, "system": "", "tools": ""},
        {"conversations": turns[:1], "system": "", "tools": ""},
    ]  # fmt: skip


def test_conversations_system_prompts_and_tools_are_kept(place, tmp_path):
    """The pairs, read again by the host, have the prompts of the conversations that they were sampled from."""
    from sepo.hosts.llamafactory.sample import training_rows

    data = tmp_path / "data"
    data.mkdir()
    (data / "chats.json").write_text(json.dumps(chats()))
    columns = {"messages": "conversations", "system": "system", "tools": "tools"}
    info = {"chats": {"file_name": "chats.json", "formatting": "sharegpt", "columns": columns}}
    (data / "dataset_info.json").write_text(json.dumps(info))
    recipe = recipe_of(place, tmp_path, dataset="chats", dataset_dir=str(data), stage="sft", judge="policy",
                       expected_column=None, ref_model=str(tmp_path / "other"), pairs_samples=8,
                       pairs_max_new_tokens=16)  # fmt: skip
    tiny.save_model(tmp_path / "other", seed=5)
    summary = make_pairs({name: value for name, value in recipe.items() if value is not None})
    assert (summary.rows, summary.prompts) == (3, 3)  # the last row has no response
    plain = {"template": "chatml", "model_name_or_path": "-"}
    before = training_rows({**plain, "dataset": "chats", "dataset_dir": str(data)}, ranking=False)
    after = training_rows({**plain, "dataset": "pairs", "dataset_dir": str(tmp_path / "pairs")})
    parts_ = ("_prompt", "_system", "_tools")
    ids = [line["id"] for line in lines(tmp_path / "pairs" / "samples.jsonl") if line["no_pair"] is None]
    assert len(ids) == summary.pairs == 3
    assert [[row[name] for name in parts_] for row in after] == [
        [before[index][name] for name in parts_] for index in ids
    ]


def test_what_a_judge_is_given_and_prompts_of_files(place, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    rows = [{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Legs?"}], "a": 8},
            {"prompt": "Wings?", "a": 2}, {"prompt": "Wings?", "a": 2}, {"prompt": "Nothing expected?"}]  # fmt: skip
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    recipe = recipe_of(place, tmp_path, judge="exact", expected_column="a", dataset="absent",
                       pairs_prompts=[str(tmp_path / "prompts.json")], pairs_samples=8)  # fmt: skip
    given, opened = [], []

    def rewards(responses):
        given.extend(responses)
        return [float(len(each.response_ids)) for each in responses]

    monkeypatch.setattr(
        "sepo.hosts.llamafactory.sampled_pairs.open_rewards", lambda *_, **__: opened.append(1) or rewards
    )
    summary = make_pairs(recipe)
    assert (summary.rows, summary.duplicate_prompts, summary.without_expected, summary.prompts) == (4, 1, 1, 2)
    assert len(opened) == 1
    tokenizer = AutoTokenizer.from_pretrained(place / "ending")
    found = {(each.messages[0]["content"], each.response, each.finished): each for each in given}
    for line in lines(tmp_path / "pairs" / "samples.jsonl"):
        messages = [{"role": "system", "content": line["system"]}] * bool(line["system"]) + line["messages"]
        for each in line["responses"]:
            response = found[line["messages"][0]["content"], each["text"], each["finished"]]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            assert list(response.prompt_ids) == tokenizer.encode(text)
            assert (response.response_ids[-1] == tokenizer.eos_token_id) == each["finished"]
            assert tokenizer.decode(response.response_ids, skip_special_tokens=True) == each["text"]
            assert len(response.response_ids) == each["tokens"] + each["finished"] == each["reward"]
            assert (response.expected, response.system) == (line["expected"], line["system"])


def test_vllm_gets_the_hosts_settings(place, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    from sepo.evaluation.generation import Generated
    from sepo.evaluation.vllm_sampling import VllmSettings
    from sepo.hosts.llamafactory import pairs_plan, sampled_pairs

    monkeypatch.setattr(pairs_plan, "why_not_vllm", lambda *_, **__: None)
    made, words = [], AutoTokenizer.from_pretrained(place / "ending")

    def sampler(spec, settings, chat_format, decoding):
        made.append((spec, settings, decoding))
        return lambda samples: [
            Generated((*words.encode("az"[number % 2] * (number + 1)), chat_format.stop_ids[0]), finished=True)
            for _, number in samples
        ]

    monkeypatch.setattr(sampled_pairs, "VllmSampler", sampler)
    keys = {"vllm_gpu_util": 0.5, "vllm_enforce_eager": True, "vllm_config": '{"seed": 1}', "infer_dtype": "bfloat16"}
    summary = make_pairs(recipe_of(place, tmp_path, **keys))
    ((spec, settings, decoding),) = made
    assert (spec.model, decoding.max_new_tokens) == (str(place / "ending"), 8)
    longest = max(map(len, pairs_plan.plan_pairs(recipe_of(place, tmp_path)).ids))
    assert settings == VllmSettings("bfloat16", longest + 8, 0.5, True, 32, False, {"seed": 1})
    assert (summary.pairs, summary.truncated, summary.chosen_reward, summary.rejected_reward) == (9, 0, 1.0, 0.0)
    recorded = json.loads((tmp_path / "pairs" / "pairs_settings.json").read_text())["settings"]
    assert recorded["pairs_engine"] == "vllm"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pairs_samples": 1}, "pairs_samples is 1, expected a whole number of at least 2"),
        ({"pairs_temperature": 0}, "pairs_temperature is 0.0, expected a positive number"),
        ({"pairs_top_p": 1.5}, "pairs_top_p is 1.5, expected a share in"),
        ({"pairs_max_new_tokens": 0}, "pairs_max_new_tokens is 0, expected a whole number of at least 1"),
        ({"pairs_min_margin": -1}, "pairs_min_margin is -1.0, expected a finite number of at least 0"),
        ({"pairs_engine": "vlm"}, "pairs_engine is 'vlm', expected transformers or vllm"),
        ({"pairs_engine": "vllm"}, "pairs_engine is vllm, but vLLM is not installed. Set pairs_engine: transformers"),
        ({"pairs_seed": -1}, "pairs_seed is -1, expected a whole number of at least 0"),
        ({"seed": -1}, "seed is -1, which samples cannot have; set pairs_seed"),
        ({"judge": None}, "judge is missing; set it to one of exact"),
        ({"judge": "exat"}, "judge is 'exat', expected one of exact"),
        ({"expected_column": None}, "judge is regex, but expected_column is missing"),
        ({"expected_column": "anser"}, "expected anser .* Did you mean 'answer'"),
        (
            {"dataset": None},
            "recipe: dataset is missing; name the data set with the prompts, or files in pairs_prompts",
        ),
        ({"dataset": "tiny_pair"}, "Undefined dataset tiny_pair"),
        ({"dataset": "tiny_pairs,tiny_plain"}, "'tiny_pairs' is a ranking data set and 'tiny_plain' is not"),
        ({"model_name_or_path": None}, "recipe: model_name_or_path is missing"),
        (
            {"temperature": 0.7},
            "temperature is set, but sepo pairs samples with keys of its own; remove temperature .only",
        ),
        ({"pair_samples": 4}, "unknown key 'pair_samples'"),
        ({"pairs_prompts": "none.jsonl"}, "pairs_prompts none.jsonl: the file does not exist"),
        (
            {"pairs_max_new_tokens": 3000},
            "has 2[0-9] tokens and its responses may have 3,000 more, but the model has 2,048",
        ),
        ({"variants": {"a": {}}}, "sepo compare"),
        ({"base": {}}, "is a pipeline recipe"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(place, tmp_path, monkeypatch, keys, message):
    monkeypatch.setattr(
        "sepo.hosts.llamafactory.sampled_pairs.load_scoring_model", lambda *_, **__: pytest.fail("loaded")
    )
    recipe = {name: value for name, value in recipe_of(place, tmp_path, **keys).items() if value is not None}
    with pytest.raises(SepoError, match=message) as refusal:
        make_pairs(recipe)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "pairs").exists()


def test_prompts_without_expected_answers_are_an_error(place, tmp_path):
    rows = [{"prompt": "a", "answer": None}, {"prompt": "b", "answer": ""}]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with pytest.raises(SepoError, match=r"none of the 2 prompts of p.json has an expected answer in the column answer"):
        make_pairs(recipe_of(place, tmp_path, pairs_prompts="p.json"))
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": "a", "answer": "("}]))
    with pytest.raises(SepoError, match=r"pairs_prompts p.json: row 1, answer: .*does not compile"):
        make_pairs(recipe_of(place, tmp_path, pairs_prompts="p.json"))


def test_a_judge_with_one_reward_is_refused_early_and_no_ties_broken_in_the_end(place, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": f"q{index}", "answer": "["} for index in range(20)]))
    keys = {
        "pairs_prompts": "p.json",
        "judge": "contains",
        "pairs_max_new_tokens": 1,
        "judge_options": {"extract": "z{9}"},
    }
    with pytest.raises(SepoError, match=r"judge contains gives all of the first \d+ responses the reward 0, so none"):
        make_pairs(recipe_of(place, tmp_path, **keys))
    stored = list((tmp_path / "pairs" / ".parts").glob("samples-*.json"))
    assert 0 < len(stored) < 20 * 4 * 20 / 300  # before all was sampled
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": "q", "answer": "["}]))
    with pytest.raises(SepoError, match="no ties broken: none of 1 prompts has a pair"):
        make_pairs(recipe_of(place, tmp_path, **keys, pairs_dir="other"))


def test_the_keys_have_no_effect_in_training(place, tmp_path):
    from sepo.hosts.llamafactory.recipe import check_recipe

    recipe = recipe_of(place, tmp_path)
    host, settings = check_recipe(recipe)
    (note,) = [note for note in settings.notes if "sepo pairs" in note]
    assert "pairs_samples, " in note
    assert "judge and expected_column are set, but have no effect in this stage: sepo pairs reads it" in note
    assert not {*PAIRS, "pairs_dir"} & set(host)
    host, settings = check_recipe({**host_recipe(place, tmp_path / "dpo"), **PAIRS})
    assert settings is None
    assert not set(PAIRS) & set(host)
