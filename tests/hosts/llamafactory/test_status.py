"""`sepo status` of a run's directory: runs in progress, finished, killed and resumed."""

import json
import os
import socket
import time

import pytest

from sepo.cli import main
from sepo.report.reading import read_subject
from sepo.runs.log_reader import LOG_FILE, SETTINGS_FILE, read_log
from sepo.runs.log_writer import note_preparation, note_rows
from sepo.runs.status import run_status
from sepo.runs.token_samples_reader import read_record
from sepo.training.row_losses import RowLosses
from tests.support.recipes import BIN, run, sepo_recipe, sepo_train


def folder_with(tmp_path, *lines, settings=None):
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(settings or {"stage": "sepo", "objective": "sepo"}))
    (tmp_path / LOG_FILE).write_text(
        "".join(f"{json.dumps(line) if isinstance(line, dict) else line}\n" for line in lines)
    )
    return tmp_path


def begin(step=0, at=1000.0, **more):
    return {"event": "begin", "step": step, "total_steps": 10, "process": os.getpid(), "machine": socket.gethostname(),
            "time": at, **more}  # fmt: skip


def log(step, at, **numbers):
    return {"event": "log", "step": step, "time": at, **numbers}


def test_a_run_in_progress(tmp_path):
    now = time.time()
    folder = folder_with(tmp_path, begin(at=now), log(1, now + 2, loss=0.7), log(4, now + 8, loss=0.5),
                         log(4, now + 9, eval_loss=0.6))  # fmt: skip
    known = run_status(folder)
    assert (known["state"], known["step"], known["total_steps"]) == ("running", 4, 10)
    assert known["seconds_per_step"] == pytest.approx(2.0)
    assert known["seconds_left"] == pytest.approx(12.0)
    assert known["last"] == {"loss": 0.5, "eval_loss": 0.6}


def test_the_status_has_sums_weights_and_empty_pairs(tmp_path, capsys):
    settings = {"stage": "sepo", "objective": "dpo+orpo", "factors": {"dpo": 0.8, "orpo": 0.2},
                "token_weight": {"name": "position", "decay": 0.98}}  # fmt: skip
    numbers = {"select/chosen_ratio": 0.5, "select/rejected_ratio": 0.25, "objective/empty_pair": 0.125,
               "select/chosen_effective": 12.34, "select/rejected_effective": 5.0}  # fmt: skip
    folder = folder_with(tmp_path, begin(), log(4, 1008.0, loss=0.5, **numbers), settings=settings)
    known = run_status(folder)
    assert known["selected"] == {"chosen": 0.5, "rejected": 0.25}
    assert known["effective_tokens"] == {"chosen": 12.34, "rejected": 5.0}
    assert known["pairs_without_selected_tokens"] == 0.125
    assert main(["status", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "objective 0.8 × dpo + 0.2 × orpo, " in printed
    assert "last: loss 0.5\n" in printed
    assert (
        "selected: 50.0% of chosen, 25.0% of rejected, 12.5% of pairs without a selected token in a response" in printed
    )
    assert ("token weight: position (decay 0.98), 12.3 effective tokens per chosen response, "
            "5.0 effective tokens per rejected response") in printed  # fmt: skip


def test_a_resumed_run_drops_the_steps_that_it_repeats(tmp_path):
    folder = folder_with(tmp_path, begin(at=10.0), log(1, 11.0, loss=1.0), log(2, 12.0, loss=2.0),
                         log(3, 13.0, loss=3.0), begin(2, 100.0), log(3, 105.0, loss=4.0))  # fmt: skip
    read = read_log(folder)
    assert [(entry["step"], entry["loss"]) for entry in read.entries] == [(1, 1.0), (2, 2.0), (3, 4.0)]
    assert read.seconds_per_step == pytest.approx(5.0)


def test_the_status_of_a_killed_run_has_the_command_that_resumes_it(tmp_path, capsys):
    folder = folder_with(tmp_path, begin(process=2**22 + 1), log(3, 1006.0, loss=0.7), '{"event": "log", "ste')
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-10").mkdir()
    known = run_status(folder)
    assert (known["state"], known["checkpoint"], known["unread_lines"]) == ("stopped", "checkpoint-10", 1)
    assert main(["status", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "stopped before its last step" in printed
    assert "the same command resumes from this checkpoint" in printed
    assert " left" not in printed


def test_a_run_that_scores_is_preparing(tmp_path, capsys):
    note_preparation(tmp_path, stage="sepo", objective="sepo", token_scorer="oracle")
    known = run_status(tmp_path)
    assert (known["state"], known["stage"], known["step"]) == ("preparing", "sepo", 0)
    assert main(["status", str(tmp_path)]) == 0
    assert "training has not started" in capsys.readouterr().out


def test_rows_that_were_left_out_are_shown(tmp_path, capsys):
    losses = RowLosses()
    losses.add("train", "skipped", "both responses have the same tokens", 2, example="text")
    losses.used("train", 1200)
    losses.used("eval", 7)
    note_preparation(tmp_path, stage="sepo", objective="sepo", token_scorer="oracle")
    note_rows(tmp_path, losses)
    assert run_status(tmp_path)["rows"] == losses.record()
    assert main(["status", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "rows of train: 1,200 of 1,202 (2 skipped: both responses have the same tokens)\n" in printed
    assert "rows of eval: 7 of 7\n" in printed


@pytest.mark.parametrize("rows", [
    None, [], {"train": 5}, {"train": {"given": 1, "used": None, "losses": []}},
    {"train": {"given": 1, "used": 1, "losses": [{"what": "cut"}]}},
], ids=str)  # fmt: skip
def test_a_damaged_line_about_rows_is_not_read(tmp_path, capsys, rows):
    folder = folder_with(tmp_path, begin(), {"event": "rows", "step": 0, "time": 1.0, "rows": rows})
    assert main(["status", str(folder)]) == 0
    assert "rows of" not in capsys.readouterr().out
    assert run_status(folder)["unread_lines"] == 1


def test_a_truncated_line_does_not_hide_the_next(tmp_path):
    folder = folder_with(tmp_path, begin(process=2**22 + 1), log(3, 1006.0, loss=0.7))
    with (folder / LOG_FILE).open("a") as file:
        file.write('{"event": "log", "ste')
    assert run_status(folder)["state"] == "stopped"
    note_preparation(folder, stage="sepo", objective="sepo", token_scorer="oracle")
    known = run_status(folder)
    assert (known["state"], known["unread_lines"], known["last"]) == ("preparing", 1, {"loss": 0.7})


def test_values_that_are_not_finite_are_still_json(tmp_path, capsys):
    folder = folder_with(tmp_path, begin(), log(3, 1006.0, loss=float("nan")))
    assert main(["status", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["last"] == {"loss": "nan"}


def test_a_number_of_a_process_that_is_used_again_is_not_the_run(tmp_path):
    assert run_status(folder_with(tmp_path, begin(at=1.0)))["state"] == "stopped"


def test_a_run_on_another_machine_is_not_guessed(tmp_path):
    assert run_status(folder_with(tmp_path, begin(machine="elsewhere")))["state"] == "unknown"


@pytest.mark.parametrize(("made", "message"), [(False, "does not exist"), (True, "no run of a sepo stage")])
def test_directories_without_a_run_are_refused(made, message, tmp_path, capsys):
    folder = tmp_path / "run"
    if made:
        folder.mkdir()
    assert main(["status", str(folder)]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_settings_file_is_reported(tmp_path, capsys):
    folder = folder_with(tmp_path, begin())
    (folder / SETTINGS_FILE).write_text("{")
    assert main(["status", str(folder)]) == 2
    assert "cannot be read as JSON" in capsys.readouterr().err


@pytest.mark.host
def test_a_real_run(world, tmp_path, capsys):
    recipe = sepo_recipe(world, tmp_path / "out", val_size=0.25, eval_strategy="steps", eval_steps=2, save_steps=2)
    sepo_train(recipe, tmp_path)
    known = run_status(tmp_path / "out")
    assert (known["stage"], known["state"], known["step"], known["total_steps"]) == ("sepo", "ended", 4, 4)
    assert {"loss", "eval_loss", "rewards/margins", "logps/chosen"} <= known["last"].keys()
    assert 0.2 < known["selected"]["chosen"] <= 0.3
    assert known["checkpoint"] == "checkpoint-4"
    assert known["stores"]
    assert {name: rows["losses"] for name, rows in known["rows"].items()} == {"train": [], "eval": []}
    assert all(store["there"] for store in known["stores"].values())
    done = run([BIN / "sepo", "status", tmp_path / "out", "--json"], cwd=tmp_path)
    assert json.loads(done.stdout)["step"] == 4
    assert main(["status", str(tmp_path / "out")]) == 0
    assert "selected: 2" in capsys.readouterr().out
    shown = read_subject(tmp_path / "out")
    assert (shown.missing, shown.rows, shown.recipe["seed"], shown.log[-1]["step"]) == ([], 18, 3, 4)
    assert shown.versions["llamafactory"].startswith("0.9.5")
    recorded, _ = read_record(tmp_path / "out")
    assert [pair.step for pair in recorded] == [1, 1, 2, 2, 3, 3, 4, 4]
    for pair in recorded:  # the recorded selection equals the one that is recomputed from the store
        (again,) = (other for other in shown.pairs if other.row == pair.row)
        assert again.prompt == pair.prompt
        for was, now in ((pair.chosen, again.chosen), (pair.rejected, again.rejected)):
            assert (now.tokens, tuple(now.selected.tolist())) == (was.tokens, was.selected)
            assert now.scores.tolist() == pytest.approx(was.scores, rel=1e-7)
