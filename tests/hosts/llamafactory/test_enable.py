"""`sepo enable`: effect of the file on a new interpreter, and `sepo disable`."""

import sys

import pytest

from sepo.errors import SepoError
from sepo.hosts.llamafactory import enable
from tests.support.recipes import BIN, run, sepo_recipe, write


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


@pytest.mark.host
def test_the_host_command_prints_an_error_in_one_line(world, elsewhere, tmp_path):
    enable.enable()
    recipe = write(sepo_recipe(world, tmp_path / "out", select_ratio=2), tmp_path / "recipe.yaml")
    code = (
        "import sys; sys.argv = ['llamafactory-cli', 'train', " + repr(str(recipe)) + "]\n"
        "from llamafactory.cli import main; main()"
    )
    done = interpreter(elsewhere, code, expect=2)
    assert "sepo: error: select_ratio is 2.0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.host
def test_doctor_finds_a_working_environment():
    done = run([BIN / "sepo", "doctor"], cwd=".", fresh=True)
    assert "nothing is wrong" in done.stdout
    assert "WRONG" not in done.stdout
