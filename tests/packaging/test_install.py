"""Installation as in the README: its lines, in empty environments, from the package index.

`make test-install` runs this file; `make test` does not, since it needs the index.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging import two_steps
from tests.support.locks import COUPLED, ENVIRONMENTS, LOCKS, MADE_FOR, ROOT, versions

pytestmark = pytest.mark.install
UV = [sys.executable, "-m", "uv", "pip"]


def readme_lines(word):
    """Return the lines of the README's shell block that contains this word, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


def shell(lines, folder):
    """Run lines in one shell, each only if those before it succeeded."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=folder, env=two_steps.environment(Path("/usr/local/bin")), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Return a directory with the sdist and the wheel, which is built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(packages, tmp_path_factory):
    """Install by the README's lines, with the wheel in place of the clone; return the directory of commands."""
    folder = tmp_path_factory.mktemp("user")
    (wheel,) = packages.glob("*.whl")
    lines = readme_lines("requirements/llamafactory.txt")
    assert lines[0].startswith("python3.11 -m venv sepo-env")
    assert lines[-2].endswith(" .")
    lines[0] = lines[0].replace("python3.11", sys.executable)
    lines[-2] = f"{lines[-2].removesuffix('.')}{wheel}"
    shutil.copytree(LOCKS, folder / LOCKS.name)
    assert "nothing is wrong" in shell(lines, folder)
    yield folder / "sepo-env" / "bin"
    shutil.rmtree(folder)


def test_the_wheel_trains_with_a_recipe_that_it_contains(installed, tmp_path):
    assert "sepo train recipe.yaml" in shell([f"{installed}/sepo --help"], tmp_path)
    two_steps.make_models(tmp_path)
    recipe = installed.parent / "share" / "sepo" / "yaml_examples" / "sepo_lora.yaml"
    assert two_steps.train(tmp_path, commands=installed, recipe=recipe)
    shell([f"{installed}/sepo report {tmp_path}/out -o {tmp_path}/run.html"], tmp_path)  # its templates
    assert "<title>" in (tmp_path / "run.html").read_text()


def test_the_wheel_has_every_file_that_the_package_has(installed):
    code = "import sepo; print(sepo.__path__[0])"
    there = Path(shell([f"{installed}/python -c '{code}'"], installed).strip())
    assert installed.parent in there.parents

    def files(folder):
        return {p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}

    assert files(ROOT / "plugin" / "sepo") == files(there)
    recipes = installed.parent / "share" / "sepo" / "yaml_examples"
    assert files(ROOT / "yaml_examples") == files(recipes)


def test_the_extra_host_changes_nothing_in_an_environment_with_a_host(installed, packages, tmp_path):
    (wheel,) = packages.glob("*.whl")
    freeze = f"{installed}/python -m pip freeze --exclude sepo"
    before = shell([freeze], tmp_path)
    pip = f"{installed}/python -m pip"
    shell([f"{pip} uninstall -y sepo", f"{pip} install '{wheel}[host]'"], tmp_path)
    assert shell([freeze], tmp_path) == before


@pytest.mark.parametrize(("name", "python"), MADE_FOR)
def test_the_extra_resolves_today_to_the_locked_binaries(name, python):
    """Resolve the extra from the current index, like an installation without lock, without downloading packages."""
    extra = ENVIRONMENTS[name][0][0]
    command = [*UV, "compile", "--quiet", "--no-header", "--python-version", python, "--extra", extra, "pyproject.toml"]
    fresh = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    locked = versions((LOCKS / name).read_text(), python=python)
    resolved = versions(fresh, python=python)
    assert {key: resolved.get(key) for key in COUPLED} == {key: locked.get(key) for key in COUPLED}


@pytest.mark.parametrize("installer", [UV, [sys.executable, "-m", "pip"]], ids=["uv", "pip"])
def test_a_changed_hash_stops_the_installation(installer, tmp_path):
    lock = tmp_path / "lock.txt"
    text = (LOCKS / "build.txt").read_text()
    options = ["install", "--no-deps", "--require-hashes", "-r", lock]
    for changed in (False, True):
        swapped = re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", text)
        lock.write_text(swapped if changed else text)
        there = ["--target", tmp_path / str(changed)]
        done = subprocess.run([*installer, *options, *there], capture_output=True, text=True, check=False)
        assert bool(done.returncode) == changed, done.stderr
    assert "hash" in done.stderr.lower()
