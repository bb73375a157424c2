"""Run with the newest versions that the extra `llamafactory` allows, and write the result to docs/drift.md.

    make drift

A scratch environment is created with the versions that `pip install '.[llamafactory]'` would install today; then `sepo
doctor` runs, and a recipe is trained for two steps. The page has the date, every package that is newer than in the
lock, and the failure, if any. The exit status is 1 after a failure.
"""

import datetime
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.packaging import two_steps
from tests.support.locks import LOCKS, ROOT, versions

PAGE = ROOT / "docs" / "drift.md"
UV = [sys.executable, "-m", "uv"]
PYTHON = "{}.{}".format(*sys.version_info[:2])


def attempt(words: list, folder: Path) -> tuple[str, str]:
    """Run a command; return its output, and the last line of its errors if it failed, else an empty text."""
    environment = two_steps.environment(Path(words[0]).parent)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="", file=sys.stderr)
    lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    return done.stdout, lines[-1].strip() if done.returncode else ""


def check(folder: Path) -> tuple[str, dict[str, str]]:
    """Install, import and train in a directory; return the first failure, if any, and the installed versions."""
    python = folder / "env" / "bin" / "python"
    for words in (
        [*UV, "venv", "--quiet", "--python", sys.executable, folder / "env"],
        [*UV, "pip", "install", "--python", python, f"{ROOT}[llamafactory]"],
    ):
        _, failed = attempt(words, folder)
        if failed:
            return f"the installation: {failed}", {}
    frozen, _ = attempt([*UV, "pip", "freeze", "--python", python, "--exclude-editable"], folder)
    lines = [line for line in frozen.splitlines() if "==" in line]
    found = versions("\n".join(lines), python=PYTHON)
    _, failed = attempt([python.with_name("sepo"), "doctor"], folder)
    if failed:
        return f"`sepo doctor`: {failed}", found
    two_steps.make_models(folder)
    try:
        two_steps.train(folder, commands=python.parent)
    except RuntimeError as error:
        return f"the two steps: {str(error).strip().splitlines()[-1]}", found
    return "", found


HEAD = """# Newest versions

`pip install '.[llamafactory]'` takes the newest versions that the extra allows; `requirements/` has those that the
tests run with. `make drift` installs the newest into a scratch environment, runs `sepo doctor` and trains a recipe for
two steps. Its last result:

"""


def page(failed: str, found: dict[str, str]) -> str:
    """Return the page for a result."""
    locked = versions((LOCKS / "llamafactory.txt").read_text(), python=PYTHON)
    moved = {name: (locked[name], version) for name, version in found.items() if locked.get(name, version) != version}
    rows = "".join(f"| {name} | {old} | {new} |\n" for name, (old, new) in sorted(moved.items()))
    table = f"| package | locked | newest allowed |\n|---|---|---|\n{rows}" if rows else "No package has moved on.\n"
    result = f"**Failed** at {failed}." if failed else "Installed, imported and trained for two steps."
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return f"{HEAD}{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine}. {result}\n\n{table}"


def main() -> int:
    """Check and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        failed, found = check(Path(folder))
    PAGE.write_text(page(failed, found))
    print(PAGE.read_text())
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
