"""`sepo enable`: effect of the file on a new interpreter, and `sepo disable`."""

import subprocess
import sys

import pytest

from sepo.errors import SepoError
from sepo.hosts.llamafactory import enable
from tests.support.recipes import BIN, host_recipe, run, sepo_recipe, write


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Write the file to a temporary directory instead of the environment that the tests run in."""
    monkeypatch.setattr(enable, "pth_file", lambda: tmp_path / "site" / enable.FILE_NAME)
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def interpreter(site, code, **options):
    """Run a new interpreter that reads the `.pth` files of ``site`` like those of its own environment."""
    return run([sys.executable, "-c", f"import site; site.addsitedir({str(site)!r})\n{code}"], cwd=site, **options)


def test_enable_and_disable_leave_nothing_behind(elsewhere):
    path = enable.enable()
    assert enable.enabled()
    assert [item.name for item in elsewhere.iterdir()] == [path.name]
    enable.enable()  # idempotent
    assert enable.disable() is True
    assert not enable.enabled()
    assert list(elsewhere.iterdir()) == []
    assert enable.disable() is False


def test_a_start_of_the_interpreter_imports_neither_torch_nor_the_host(elsewhere):
    enable.enable()
    code = "import sys; print([name for name in ('torch', 'llamafactory', 'sepo._autoload') if name in sys.modules])"
    assert interpreter(elsewhere, code).stdout.strip() == "['sepo._autoload']"


def test_the_interpreter_starts_after_the_package_was_uninstalled(elsewhere):
    enable.enable()
    done = run([sys.executable, "-c", f"exec({enable.LINE.replace('sepo', 'gone')!r})"], cwd=elsewhere)
    assert done.stderr == ""


def test_an_environment_that_cannot_be_written_is_reported(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(enable, "pth_file", lambda: tmp_path / "file" / enable.FILE_NAME)
    with pytest.raises(SepoError, match=r"cannot write .*`sepo train`, which works without it"):
        enable.enable()


def host_command(*words):
    """Return the code of the host's own command."""
    return (
        f"import sys; sys.argv = {['llamafactory-cli', *map(str, words)]!r}\nfrom llamafactory.cli import main; main()"
    )


# Every subpackage fails to import; what `sepo enable` itself needs does not.
BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name in ("sepo.recipe", "sepo.hosts.llamafactory.registration", "sepo.scoring", "sepo.objectives"):
            raise ImportError("a missing dependency of " + name)
sys.meta_path.insert(0, Broken())
"""
REBOUND = """
import sys
from llamafactory.train import tuner
def state():
    functions = [tuner.get_train_args, tuner.run_dpo, tuner._training_function, tuner.Worker]
    loaded = [name for name in sys.modules if name.startswith("sepo.") and name not in LIGHT]
    return [one.__module__ for one in functions if not one.__module__.startswith("llamafactory.")], loaded
LIGHT = ("sepo._autoload", "sepo.errors", "sepo.plugins", "sepo.recipe", "sepo.recipe.given", "sepo.recipe.stage_names")
host, seen = tuner._training_function, []
tuner.get_ray_args = lambda args: type("Ray", (), {"use_ray": False})
if STAGE == "dpo":
    tuner._training_function = lambda config: seen.append(config["args"]["stage"])
    tuner._training_function.__module__ = host.__module__
tuner.run_exp({"stage": STAGE, "select_ratio": 2})
print(seen, *state())
"""


def test_a_run_of_the_hosts_stage_rebinds_nothing_and_imports_nothing_heavy(elsewhere):
    enable.enable()
    assert interpreter(elsewhere, "STAGE = 'dpo'" + REBOUND).stdout.splitlines()[-1] == "['dpo'] [] []"
    done = interpreter(elsewhere, "STAGE = 'sepo'" + REBOUND, expect=2)  # registered, so that sepo reads the recipe
    assert "sepo: error: select_ratio is 2" in done.stderr


@pytest.mark.host
def test_a_broken_package_ends_only_runs_of_its_stages(world, elsewhere, tmp_path):
    enable.enable()
    recipe = write(host_recipe(world, tmp_path / "theirs", max_steps=1), tmp_path / "theirs.yaml")
    interpreter(elsewhere, BROKEN + host_command("train", recipe))
    assert (tmp_path / "theirs" / "adapter_model.safetensors").is_file()
    recipe = write(sepo_recipe(world, tmp_path / "own"), tmp_path / "own.yaml")
    done = interpreter(elsewhere, BROKEN.replace('"sepo.recipe", ', "") + host_command("train", recipe), expect=2)
    (line,) = [line for line in done.stderr.splitlines() if "sepo: error:" in line]
    assert "stage is sepo, and sepo cannot be imported (ImportError: a missing dependency of sepo.hosts" in line
    done = interpreter(elsewhere, BROKEN + host_command("train", recipe), expect=None)
    assert done.returncode != 0
    assert not (tmp_path / "own").exists()


@pytest.mark.host
def test_a_broken_package_leaves_the_board_as_it_is(elsewhere):
    enable.enable()
    code = BROKEN + "from llamafactory.webui import interface; print(interface.create_train_tab.__module__)"
    done = interpreter(elsewhere, code)
    assert done.stdout.splitlines()[-1] == "llamafactory.webui.components.train"
    expected = "sepo: this LLaMA Board does not list sepo's stages: sepo cannot be imported (ImportError: a missing"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sepo:")]
    assert line.startswith(expected)


@pytest.mark.host
def test_the_host_command_prints_an_error_in_one_line(world, elsewhere, tmp_path):
    enable.enable()
    recipe = write(sepo_recipe(world, tmp_path / "out", select_ratio=2), tmp_path / "recipe.yaml")
    done = interpreter(elsewhere, host_command("train", recipe), expect=2)
    assert "sepo: error: select_ratio is 2.0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.host
def test_doctor_finds_a_working_environment():
    done = run([BIN / "sepo", "doctor", "--timing"], cwd=".", fresh=True)
    verdict, total, imports, work = done.stdout.splitlines()[-4:]
    assert verdict == "nothing is wrong"
    assert "WRONG" not in done.stdout
    assert total.startswith("timing: ")
    assert " torch " in imports
    assert " what is relied on in LLaMA-Factory " in work


ACTIVATION = """
from sepo.hosts.llamafactory import doctor
from pathlib import Path
doctor.pth_file, doctor.enabled = lambda: Path("."), lambda: True
import llamafactory.train.tuner, llamafactory.webui.interface
doctor.subprocess.run = None  # no other interpreter is started
(finding,) = doctor.activation_findings()
print(finding.good, finding.text)
"""


@pytest.mark.host
def test_an_interpreter_that_registered_the_stages_needs_no_other_one_to_find_them(elsewhere):
    enable.enable()
    assert interpreter(elsewhere, ACTIVATION).stdout.splitlines()[-1].startswith("True enabled in this environment")


def test_another_interpreter_is_started_if_this_one_has_not_registered_them(elsewhere, monkeypatch):
    from sepo.hosts.llamafactory import doctor

    enable.enable()
    monkeypatch.setattr(doctor, "pth_file", enable.pth_file)
    started = []

    def failed(command, **options):
        started.append(command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nImportError: no gradio\n")

    monkeypatch.setattr(doctor.subprocess, "run", failed)
    (finding,) = doctor.activation_findings()
    assert len(started) == 1
    assert not finding.good
    assert finding.text.endswith("a new interpreter does not register sepo's stages (ImportError: no gradio)")
