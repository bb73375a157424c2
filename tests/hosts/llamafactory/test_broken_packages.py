"""A package that does not load with the others: every command reports it in one line, with the repair."""

import os
import sys
from pathlib import Path

import pytest

import sepo.hosts.llamafactory
from sepo.installation import pip_install, requirements
from tests.support.recipes import environment, run

ROOT = Path(__file__).parents[3]
COUPLED = ("torch", "torchaudio", "torchvision")
REASON = "libtorchaudio.so: undefined symbol: torch_exception_get_what_without_backtrace"


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Return the environment with the torchaudio of another patch release before its own on the path."""
    site = tmp_path_factory.mktemp("site")
    (site / "torchaudio").mkdir()
    (site / "torchaudio" / "__init__.py").write_text(
        "try:\n"
        f"    raise OSError({REASON!r})\n"
        "except OSError as error:\n"
        "    raise OSError('Could not load this library') from error\n"
    )
    (site / "torchaudio-2.11.1.dist-info").mkdir()
    (site / "torchaudio-2.11.1.dist-info" / "METADATA").write_text("Name: torchaudio\nVersion: 2.11.1\n")
    return environment(PYTHONPATH=os.pathsep.join([str(site), str(ROOT / "plugin")]))


def repaired(line):
    """Return whether a line has the cause and the command that installs the coupled packages."""
    recorded = requirements("llamafactory")
    return (
        "torchaudio 2.11.1 is outside ==2.11.0 and does not load" in line
        and f"(OSError: {REASON})" in line
        and line.endswith(f"; run: {pip_install(recorded[name] for name in COUPLED)}")
    )


@pytest.mark.host
def test_doctor_reports_it_in_one_line(broken, tmp_path):
    done = run([sys.executable, "-m", "sepo", "doctor"], cwd=tmp_path, env=broken, expect=1, fresh=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  WRONG ")]
    assert repaired(line)
    assert "Traceback" not in done.stderr


@pytest.mark.host
def test_a_run_reports_it_in_one_line(broken, tmp_path):
    recipe = ROOT / "yaml_examples" / "sepo_lora.yaml"
    done = run([sys.executable, "-m", "sepo", "train", recipe], cwd=tmp_path, env=broken, expect=2, fresh=True)
    (line,) = [line for line in done.stderr.splitlines() if "sepo: error:" in line]
    assert line.startswith("sepo: error: LLaMA-Factory cannot be imported: ")
    assert repaired(line)
    assert "Traceback" not in done.stderr


@pytest.mark.host
def test_a_worker_reports_it_in_one_line(broken, tmp_path):
    worker = Path(sepo.hosts.llamafactory.__file__).with_name("worker.py")
    done = run([sys.executable, worker], cwd=tmp_path, env={**broken, "RANK": "1"}, expect=2, fresh=True)
    (line,) = [line for line in done.stderr.splitlines() if "sepo: error:" in line]
    assert line.startswith("[rank 1] sepo: error: LLaMA-Factory cannot be imported: ")
    assert repaired(line)


def test_a_host_that_fails_for_another_reason_is_reinstalled(monkeypatch):
    from sepo.errors import SepoError
    from sepo.hosts.llamafactory import recipe
    from sepo.installation import Package

    monkeypatch.setattr(recipe, "packages", lambda host: [Package("torch", "2.11.0")])
    expected = r"\(ModuleNotFoundError: No module named 'llamafactory.gone'\), although .*; run: pip install"
    with pytest.raises(SepoError, match=expected):
        recipe.load_host("train", "llamafactory.gone")
