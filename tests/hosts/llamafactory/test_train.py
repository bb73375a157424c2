"""Real runs of `sepo train` on tiny models: the first in a new process, the others in forks (see `warm`)."""

import json
import math
import os
import re
import signal
import time
from types import SimpleNamespace

import pytest

from sepo.runs.token_samples_reader import RECORD_FILE
from sepo.training.trainable_rows import with_lengths
from tests.support import warm
from tests.support.recipes import (
    BIN,
    adapter,
    environment,
    host_recipe,
    logged,
    run,
    same_weights,
    sepo_recipe,
    sepo_train,
    write,
)
from tests.support.rows import rows
from tests.support.trainers import GROUPED

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def first_run(world, tmp_path_factory):
    """Run training with scoring, evaluation every two steps, a checkpoint and a plot."""
    folder = tmp_path_factory.mktemp("first")
    recipe = sepo_recipe(
        world, folder / "out", val_size=0.25, eval_strategy="steps", eval_steps=2, save_steps=2, plot_loss=True,
        load_best_model_at_end=True, gradient_accumulation_steps=2, pref_beta=0.1, pref_loss="sigmoid",
    )  # fmt: skip
    done = sepo_train(recipe, folder, fresh=True)
    return folder, recipe, done


def test_run_logs_what_it_selected(first_run):
    folder, _, _ = first_run
    entries = logged(folder / "out")
    training = [entry for entry in entries if "loss" in entry]
    assert len(training) == 4
    for entry in training:
        # floor(0.3 n) of n tokens: at most 0.3 and, for these short responses, not much less
        assert 0.2 < entry["select/chosen_ratio"] <= 0.3
        assert 0.2 < entry["select/rejected_ratio"] <= 0.3
        assert entry["select/tokens"] == pytest.approx(round(entry["select/tokens"] * 2) / 2)
        margin = entry["rewards/chosen"] - entry["rewards/rejected"]
        assert entry["rewards/margins"] == pytest.approx(margin, abs=1e-4)
        assert {"logps/chosen", "logps/rejected", "rewards/accuracies"} <= entry.keys()
    evaluations = [entry for entry in entries if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 4]
    assert all(0.2 < entry["eval_select/chosen_ratio"] <= 0.3 for entry in evaluations)


def test_a_run_leaves_the_files_of_a_host_run(first_run):
    folder, _, _ = first_run
    for name in (
        "adapter_model.safetensors",
        "README.md",
        "all_results.json",
        "training_loss.png",
        "trainer_log.jsonl",
    ):
        assert (folder / "out" / name).is_file(), name
    settings = json.loads((folder / "out" / "sepo_settings.json").read_text())
    assert settings["hyperparameters"]["chosen_ratio"] == 0.3
    assert set(settings["token_scores"]) == {"train", "eval"}


def test_the_first_screen_is_logged_before_the_data_and_before_training(first_run, world):
    _, _, done = first_run
    screen = (
        "========================= sepo: settings of this run =========================\n"
        "stage         sepo  (stage in recipe.yaml)\n"
        "objective     sepo  (stage sepo)\n"
        "token scorer  oracle  (objective sepo)\n"
        "selection     0.3 of chosen and 0.3 of rejected tokens; unit token, scope response, rule floor\n"
        "reference     none\n"
        f"oracle        {world / 'oracle'} over {world / 'base'}\n"
        "all hyperparameters have the defaults of objective sepo\n"
        "- pref_beta is set, but objective sepo does not use it.\n"
    )
    before, between, after = done.stdout.split(screen)
    assert "scoring train" not in before
    assert "scoring train" in between
    assert "'loss'" in after
    assert "'loss'" not in between


def test_the_seconds_before_training_are_logged(first_run):
    _, _, done = first_run
    (line,) = [line for line in done.stdout.splitlines() if " before training: " in line]
    seconds = r"\d+\.\d\d s \(CPU \d+\.\d\d s\)"
    assert re.search(f"before training: rows and scores {seconds}, policy {seconds}, trainer {seconds}\\.$", line)
    assert done.stdout.index(line) < done.stdout.index("'loss'")


def test_adapter_is_exported_by_the_host(first_run, world, tmp_path):
    folder, _, _ = first_run
    recipe = {
        "model_name_or_path": str(world / "policy"), "adapter_name_or_path": str(folder / "out"), "template": "chatml",
        "export_dir": str(tmp_path / "merged"),
    }  # fmt: skip
    run([BIN / "llamafactory-cli", "export", write(recipe, tmp_path / "export.yaml")], cwd=tmp_path)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_found_store_gives_the_same_run_as_scoring(first_run):
    folder, recipe, _ = first_run
    again = {**recipe, "output_dir": str(folder / "again")}
    done = sepo_train(again, folder, name="again.yaml")
    assert "nothing to score" in done.stdout
    assert logged(folder / "again") == logged(folder / "out")
    assert same_weights(adapter(folder / "again"), adapter(folder / "out"))


def _written(file):
    """Return whether a file is not empty: the trainer opens it before it writes."""
    return file.exists() and file.stat().st_size > 0


def test_killed_run_resumes_to_the_same_weights(first_run):
    folder, recipe, _ = first_run
    killed = {**recipe, "output_dir": str(folder / "killed")}
    path = write(killed, folder / "killed.yaml")
    with open(folder / "killed.log", "w") as log:
        process = warm.start(
            [BIN / "sepo", "train", path], cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
        checkpoint = folder / "killed" / "checkpoint-2" / "trainer_state.json"
        deadline = time.monotonic() + 120
        while not _written(checkpoint) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert checkpoint.exists()
    if (folder / "killed" / "checkpoint-4").exists():  # the run continued after the signal: reset it to its checkpoint
        run(["rm", "-rf", folder / "killed" / "checkpoint-4"], cwd=folder)
    done = sepo_train(killed, folder, name="killed.yaml")
    assert "Resuming training from" in done.stdout
    assert same_weights(adapter(folder / "killed"), adapter(folder / "out"))
    records = [(folder / name / RECORD_FILE).read_bytes() for name in ("killed", "out")]
    assert records[0] == records[1]
    assert len(records[0].splitlines()) == 16


def test_host_stage_is_untouched(world, tmp_path):
    recipe = host_recipe(world, tmp_path / "sepo")
    theirs = host_recipe(world, tmp_path / "host")
    sepo_train(recipe, tmp_path, name="sepo.yaml")
    run([BIN / "llamafactory-cli", "train", write(theirs, tmp_path / "theirs.yaml")], cwd=tmp_path, fresh=True)
    assert logged(tmp_path / "sepo") == logged(tmp_path / "host")
    assert same_weights(adapter(tmp_path / "sepo"), adapter(tmp_path / "host"))


def test_ratio_one_is_the_mean_over_all_tokens(world, tmp_path):
    """At the first step the policy is the starting model, so the logged loss can be computed independently.

    The line break that the template writes after the end of turn is the only token that is not selected.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.support.tiny import pairs

    recipe = sepo_recipe(
        world, tmp_path / "out", select_ratio=1.0, max_steps=1, per_device_train_batch_size=24, sepo_gamma=2.0
    )
    sepo_train(recipe, tmp_path)
    entry = logged(tmp_path / "out")[0]
    model = AutoModelForCausalLM.from_pretrained(world / "policy", dtype=torch.float64).eval()
    words = AutoTokenizer.from_pretrained(world / "policy")
    losses = []
    for row in pairs(24):
        prompt = f"<|im_start|>user\n{row['conversations'][0]['value']}<|im_end|>\n<|im_start|>assistant\n"
        means = []
        for side in ("chosen", "rejected"):
            start = words(prompt, add_special_tokens=False)["input_ids"]
            answer = words(row[side]["value"] + "<|im_end|>\n", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logps = model(torch.tensor([start + answer])).logits.log_softmax(-1)[0, len(start) - 1 : -1]
            means.append(logps.gather(-1, torch.tensor(answer)[:, None])[:-1].mean())
        losses.append(-torch.nn.functional.logsigmoid(2.0 * (means[0] - means[1])))
    assert entry["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert entry["select/chosen_ratio"] == entry["select/rejected_ratio"] == 1.0
    assert math.isfinite(entry["grad_norm"])


def test_full_fine_tuning_several_eval_sets_and_command_line_options(world, tmp_path):
    recipe = sepo_recipe(
        world, tmp_path / "out", finetuning_type="full", max_steps=2, eval_dataset="tiny_pairs,tiny_pairs",
        do_eval=True, learning_rate=1e-5,
    )  # fmt: skip
    del recipe["lora_rank"], recipe["lora_target"]
    words = [word for name, value in recipe.items() for word in (f"--{name}", str(value))]
    run([BIN / "sepo", "train", *words], cwd=tmp_path)
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert 0.2 < results["eval_select/rejected_ratio"] <= 0.3
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_rows_are_grouped_by_length(world, tmp_path):
    """The host's sampler needs a column: pairs have no ``input_ids``."""
    recipe = sepo_recipe(
        world, tmp_path / "out", max_steps=2, do_eval=True, eval_dataset="tiny_pairs", per_device_train_batch_size=3,
        **GROUPED,
    )  # fmt: skip
    sepo_train(recipe, tmp_path)
    assert len([entry for entry in logged(tmp_path / "out") if "loss" in entry]) == 2


def test_the_length_of_a_pair_is_that_of_its_longer_response():
    strategy = {"train_sampling_strategy": "group_by_length", "length_column_name": "length"}
    data = {"train_dataset": rows((2, 5), (4, 1)), "eval_dataset": {"a": rows((1, 1))}}
    found = with_lengths(data, SimpleNamespace(**strategy))
    assert (found["train_dataset"]["length"][:], found["eval_dataset"]["a"]["length"][:]) == ([8, 7], [4])
    assert with_lengths(data, SimpleNamespace(train_sampling_strategy="random")) == data
