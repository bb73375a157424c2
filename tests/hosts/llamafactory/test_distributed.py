"""Two processes on the CPU: the same weights as one process with the same global batch."""

import os

import pytest

from sepo.runs.token_samples_reader import read_record
from tests.support.recipes import BIN, adapter, environment, logged, run, sepo_recipe, sepo_train, write
from tests.support.tolerance import LOG_PROB

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def one_process(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    recipe = sepo_recipe(world, folder / "out", per_device_train_batch_size=4, disable_shuffling=True)
    sepo_train(recipe, folder)
    return folder, recipe


def two_processes(**extra):
    return environment(FORCE_TORCHRUN="1", NPROC_PER_NODE="2", MASTER_PORT=str(20000 + os.getpid() % 20000), **extra)


def close(first, second):
    import torch

    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], rtol=0, atol=2e-6) for name in first
    )


def test_two_ranks_train_as_one_process_and_share_the_scoring(one_process, tmp_path):
    folder, recipe = one_process
    two = {**recipe, "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 2, "batch_tokens": 60,
           "token_scores_dir": str(tmp_path / "scores")}  # fmt: skip
    sepo_train(two, tmp_path, env=two_processes(), forks=True)
    assert close(adapter(tmp_path / "out"), adapter(folder / "out"))
    losses = [
        [entry["loss"] for entry in logged(output) if "loss" in entry] for output in (tmp_path / "out", folder / "out")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=LOG_PROB)
    assert len(losses[0]) == 4
    recorded, whole = (read_record(output)[0] for output in (tmp_path / "out", folder / "out"))
    assert {pair.step for pair in recorded} == {1, 2, 3, 4}
    assert len(whole) == 16
    assert all(pair in whole for pair in recorded)  # the pairs of the first process, equal to those of a single process


def test_accumulation_of_split_batches_is_a_larger_batch(one_process, tmp_path):
    folder, recipe = one_process
    accumulated = {**recipe, "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 2,
                   "gradient_accumulation_steps": 2, "batch_tokens": 60}  # fmt: skip
    sepo_train(accumulated, tmp_path)
    assert close(adapter(tmp_path / "out"), adapter(folder / "out"))


def test_the_host_command_has_sepo_stages_on_every_rank_once_enabled(one_process, tmp_path, monkeypatch):
    """The launcher and torchrun's workers are new interpreters; a sitecustomize makes each of them read the `.pth`."""
    from sepo.hosts.llamafactory import enable

    folder, recipe = one_process
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(site)!r})\n")
    monkeypatch.setattr(enable, "pth_file", lambda: site / enable.FILE_NAME)
    enable.enable()
    two = {**recipe, "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 2}
    run(
        [BIN / "llamafactory-cli", "train", write(two, tmp_path / "two.yaml")],
        cwd=tmp_path,
        env=two_processes(PYTHONPATH=str(site)),
        fresh=True,
    )
    assert close(adapter(tmp_path / "out"), adapter(folder / "out"))


def test_an_error_is_printed_once_before_ranks_are_started(world, tmp_path):
    recipe = sepo_recipe(world, tmp_path / "out", select_ratio=0)
    done = sepo_train(recipe, tmp_path, env=two_processes(), expect=2)
    assert done.stderr.count("sepo: error:") == 1
    assert "torchrun" not in done.stderr
