"""Runs in separate processes: a plugin that cannot be imported, and the real command with two processes."""

import json
import subprocess
import sys

import pytest

from sepo.hosts.axolotl.config import TRAINER
from tests.support import axo

_ALIAS = {"rl": "minor_dpo"}
_BLOCK = {"rl": "dpo", "sepo": {"stage": "minor_dpo"}}
_SAFE = {**_BLOCK, "trainer_cls": TRAINER}


@pytest.mark.parametrize(
    ("words", "broken"), [(_ALIAS, "sepo"), (_SAFE, "sepo.hosts.axolotl"), (_BLOCK, "sepo.recipe.keys")]
)
def test_a_run_whose_plugin_cannot_be_imported_fails(root, tmp_path, words, broken):
    """In a separate process, up to the trainer: nothing is trained."""
    path = axo.write(axo.config(root, tmp_path / "out", **words), tmp_path / "config.yaml")
    code = (
        "import sys\n"
        f"sys.modules[{broken!r}] = None\n"
        "sys.argv = sys.argv[:1]\n"
        "import axolotl.train\n"
        "axolotl.train.execute_training = lambda *args: print('TRAINED')\n"
        "from axolotl.cli.train import do_cli\n"
        f"do_cli(config={str(path)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=axo.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode != 0, done.stdout[-2000:]
    assert "TRAINED" not in done.stdout


TIMINGS = ("_runtime", "_per_second", "_preparation_time")


def evaluations(output):
    """Return the metrics of the evaluations in a run's log, without timings."""
    entries = [json.loads(line) for line in (output / "sepo_log.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in entry.items() if name.startswith("eval_") and not name.endswith(TIMINGS)}
        for entry in entries
        if "eval_loss" in entry
    ]


def test_the_real_command_with_two_processes(root, tmp_path, train):
    """Four of 24 pairs remain for the last evaluated batches: not enough for one process, none for the other."""
    output = tmp_path / "out"
    made = axo.config(
        root, output, rl="sepo", sepo=axo.block(root, output, "sepo"), max_steps=2, learning_rate=1e-12,
        test_datasets=[axo.rows_at(root / "pairs.jsonl")], eval_steps=2, eval_batch_size=5,
    )  # fmt: skip
    path = axo.write(made, tmp_path / "config.yaml")
    done = subprocess.run(
        [axo.BIN / "axolotl", "train", path, "--launcher", "torchrun", "--", "--nproc_per_node=2", "--standalone"],
        cwd=tmp_path, env=axo.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (output / "adapter_model.safetensors").is_file()
    for logger, message in (
        ("sepo.hosts.axolotl.data", "stage sepo: {"),
        ("sepo.scoring.stored_columns", "scoring train: 24 of 24 rows missing"),
    ):
        (line,) = [line for line in done.stdout.splitlines() if message in line]  # from the first process only
        assert f"[INFO] [{logger}" in line
    entries = [json.loads(line) for line in (output / "sepo_log.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in entries].count("begin") == 1
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2]
    train({**made, "output_dir": str(tmp_path / "one")})
    found, expected = evaluations(output)[-1], evaluations(tmp_path / "one")[-1]
    assert {"eval_rewards/accuracies", "eval_select/tokens"} <= expected.keys()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
