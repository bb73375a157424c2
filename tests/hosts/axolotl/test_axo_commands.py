"""Commands in an environment with Axolotl: which of them work, and the errors of the others."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sepo.cli import main
from sepo.cli.main import build_parser
from tests.support import axo

PAGE = (Path(__file__).parents[3] / "docs" / "axolotl.md").read_text()
TABLE = PAGE.partition("\n## Commands\n")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| `sepo ([^`]+)` \| (works|needs LLaMA-Factory)\b", TABLE, re.MULTILINE))
NEEDED = {
    "train": ["recipe.yaml", "learning_rate=1"],
    "score": ["recipe.yaml"],
    "scores export RECIPE": ["recipe.yaml", "-o", "rows.jsonl"],
    "pipeline": ["recipe.yaml"],
    "compare": ["recipe.yaml"],
    "plan": ["recipe.yaml"],
    "bench": ["recipe.yaml"],
    "eval": ["recipe.yaml"],
    "sample": ["recipe.yaml"],
    "pairs": ["recipe.yaml"],
    "credit": ["demo"],
    "webui": [],
    "enable": [],
    "demo": [],
}
"""Arguments of each command that needs the other host."""


def choices(parser):
    (found,) = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return found


def test_every_command_is_in_the_table():
    commands = choices(build_parser())
    listed = {" ".join(row.split()[: 2 if row.startswith("scores") else 1]) for row in ROWS}
    assert listed == (set(commands) - {"scores"}) | {f"scores {task}" for task in choices(commands["scores"])}
    assert len(re.findall(r"^\| `", TABLE, re.MULTILINE)) == len(ROWS)
    assert {row for row, what in ROWS.items() if what != "works"} == set(NEEDED)


@pytest.mark.parametrize("command", NEEDED)
def test_a_command_of_the_other_host_fails_with_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word for word in command.split() if word != "RECIPE"]
    assert main([*words, *NEEDED[command]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sepo: error: this environment has Axolotl, and `sepo {command}` needs LLaMA-Factory")
    assert "docs/axolotl.md#commands" in line
    assert ("axolotl train config.yaml" in line) == (command == "train")
    assert "pip install" not in line


def test_the_commands_that_work_read_a_run_and_its_store(root, tmp_path, train, monkeypatch, capsys):
    output, scores = tmp_path / "out", ["--dir", str(tmp_path / "scores")]
    train(axo.config(root, output, rl="sepo", sepo=axo.block(root, output, "sepo"), max_steps=2))
    store = Path(json.loads((output / "sepo_settings.json").read_text())["token_scores"]["train"])
    monkeypatch.setattr("sepo.hosts.llamafactory.enable.pth_file", lambda: tmp_path / "absent.pth")
    monkeypatch.chdir(tmp_path)
    done = {
        "status DIR": ([output], "stage sepo, objective sepo, ended"),
        "report RUN_OR_STORE": ([output, "-o", "report.html"], "written: report.html"),
        "show RUN_OR_STORE": ([output, "--rows", "1"], "chosen"),
        "scores ls": (scores, "1 stores"),
        "scores show STORE": ([store, *scores], str(store)),
        "scores verify": (scores, "0 damaged"),
        "scores export STORE": ([store, *scores, "-o", "rows.jsonl"], "rows of scores"),
        "scores rm STORE": ([store.name, *scores, "--yes"], "removed: "),
        "disable": ([], "nothing to undo"),
    }
    assert {*done, "doctor"} == {row for row, what in ROWS.items() if what == "works"}
    for command, (words, printed) in done.items():
        capsys.readouterr()
        name = [word for word in command.split() if word.islower()]
        assert main([*name, *map(str, words)]) == 0, command
        assert printed in capsys.readouterr().out, command
    assert not store.exists()


def test_doctor_checks_this_host(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sepo", "doctor"],
        cwd=tmp_path, env=axo.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "nothing is wrong"
    lines = [line.split() for line in done.stdout.splitlines()]
    for name in ("axolotl", "torch", "transformers", "trl", "peft"):
        assert sum(line[:2] == ["ok", name] for line in lines) == 1, name
    assert "plugins: [sepo.hosts.axolotl.SePOPlugin] can be imported" in done.stdout
    assert "llamafactory" not in done.stdout.lower()
    assert "activation" not in done.stdout
