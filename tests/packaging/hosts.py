"""Run sepo with each supported version of LLaMA-Factory, and write the results to docs/hosts.md.

    .venv/bin/python -m tests.packaging.hosts [--main CHECKOUT]

Each version has an environment of its own in `~/.cache/sepo`, 0.9.5 that of this Python. In each, the tests of the
contract and of LLaMA Board run, every stage and the host's dpo train for two steps on the same tiny models, and `sepo
doctor`, `plan` and `bench` run. Losses and gradient norms of the first step are compared with those of 0.9.5. CHECKOUT
is a checkout of LLaMA-Factory's main branch; without it, its columns are "not run". The exit status is 1 if anything
failed.
"""

import argparse
import datetime
import json
import math
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.packaging import two_steps
from tests.support.environments import UV, environment
from tests.support.locks import LOCKS, ROOT
from tests.support.recipes import STAGES, host_recipe, sepo_recipe, write

PAGE = ROOT / "docs" / "hosts.md"
PACKAGES = ("llamafactory", "torch", "transformers", "peft", "trl", "accelerate", "datasets")
# Not of the host: the released one, which a checkout replaces, can refuse packages that the checkout takes.
FIRST_IMPORT = "import transformers, peft, trl, gradio"
TESTS = ("test_contract.py", "test_board.py")
# float32 sums over about a million numbers, in another order; transformers 4 logs the loss with four decimals.
GRADIENT, LOSS = 1e-4, 1e-4


@dataclass(frozen=True)
class Version:
    """A column of the table: locks that are installed one after the other; none for the environment of this Python."""

    title: str
    locks: tuple[str, ...] = ()
    checkout: Path | None = None


@dataclass
class Result:
    """Cells of a column by row, what failed, and the first logged step of each run."""

    cells: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    first: dict[str, dict[str, float]] = field(default_factory=dict)


def columns(main: Path | None) -> list[Version]:
    return [
        Version("0.9.5"),
        Version("0.9.4", ("llamafactory-0.9.4.txt",)),
        Version("main", ("llamafactory.txt",), main),
        Version("main, transformers 5.8", ("llamafactory.txt", "transformers-5.8.txt"), main),
    ]


def commands(version: Version) -> Path:
    """Return the directory of commands of a version's environment, in which this checkout is installed."""
    if not version.locks:
        return Path(sys.executable).parent
    name = "-".join(["host", *(Path(lock).stem for lock in version.locks)])
    locks = [LOCKS / lock for lock in version.locks]
    found = environment(name, locks, python=sys.executable, first_import=FIRST_IMPORT) / "bin"
    install = [*UV, "pip", "install", "--quiet", "--python", found / "python", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--editable", ROOT], check=True)
    if version.checkout is not None:
        subprocess.run([*install, "--reinstall-package", "llamafactory", version.checkout], check=True)
    return found


def attempt(words: Sequence[object], *, binaries: Path, folder: Path) -> str:
    """Run a command and return its output.

    Raises:
        RuntimeError: with the last line, if the command failed.
    """
    print("$", *words, file=sys.stderr, flush=True)
    own = {**two_steps.environment(binaries), "PYTHONPATH": str(ROOT / "plugin")}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=1800
    )
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-8000:], sep="\n", file=sys.stderr, flush=True)
        lines = (done.stdout if "pytest" in words else done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError((lines or ["no message"])[-1])
    return done.stdout


def recipes(world: Path, folder: Path) -> dict[str, Path]:
    """Write a recipe of two steps per stage, and one of the host's dpo; return them by name."""
    short = {"max_steps": two_steps.STEPS, "preprocessing_num_workers": 1}
    made = {"dpo": host_recipe(world, folder / "dpo", **short)}
    for stage, keys in STAGES.items():
        made[stage] = sepo_recipe(world, folder / stage, **{"stage": stage, **keys, **short})
    made["minor_dpo, `ref_precompute`"] = sepo_recipe(
        world, folder / "precomputed", **{"stage": "minor_dpo", **STAGES["minor_dpo"], **short, "ref_precompute": True}
    )
    return {name: write(recipe, folder / f"{index}.yaml") for index, (name, recipe) in enumerate(made.items())}


def train(recipe: Path, *, binaries: Path, folder: Path) -> dict[str, float]:
    """Train, and return what was logged at the first step."""
    attempt([binaries / "sepo", "train", recipe], binaries=binaries, folder=folder)
    (output,) = [line.split()[1] for line in recipe.read_text().splitlines() if line.startswith("output_dir:")]
    history = json.loads((Path(output) / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    if len(steps) != two_steps.STEPS:
        raise RuntimeError(f"expected {two_steps.STEPS} steps, found {len(steps)}")
    return {name: float(steps[0][name]) for name in ("loss", "grad_norm")}


def compare(found: dict[str, float], expected: dict[str, float]) -> None:
    """Raise RuntimeError if the first step of a run differs from that of 0.9.5."""
    if not math.isclose(found["grad_norm"], expected["grad_norm"], rel_tol=GRADIENT):
        raise RuntimeError(f"gradient norm {found['grad_norm']:.6f}, on 0.9.5 {expected['grad_norm']:.6f}")
    if not abs(found["loss"] - expected["loss"]) <= LOSS:
        raise RuntimeError(f"loss {found['loss']:.6f}, on 0.9.5 {expected['loss']:.6f}")


def measure(version: Version, world: Path, reference: Result | None) -> Result:
    """Run everything with one version."""
    result = Result()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = recipes(world, folder)

        def cell(row: str, run: Callable[[], str]) -> bool:
            try:
                result.cells[row] = run()
            except (RuntimeError, subprocess.SubprocessError, OSError) as error:
                result.cells[row] = f"**failed**: {error}".replace("|", r"\|")
                result.failed.append(f"{version.title}, {row}: {error}")
                return False
            return True

        binaries = Path()

        def install() -> str:
            nonlocal binaries
            binaries = commands(version)
            code = (
                f"from importlib import metadata; print(*(n + ' ' + metadata.version(n) for n in {PACKAGES}), sep=', ')"
            )
            return attempt([binaries / "python", "-c", code], binaries=binaries, folder=folder).strip()

        def tests() -> str:
            files = [ROOT / "tests" / "hosts" / "llamafactory" / file for file in TESTS]
            words = [binaries / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
            return attempt(words, binaries=binaries, folder=ROOT).strip().splitlines()[-1].split(" in ")[0]

        def doctor() -> str:
            lines = attempt([binaries / "sepo", "doctor"], binaries=binaries, folder=folder).splitlines()
            notes = sum(line.startswith("  note ") for line in lines)
            return lines[-1] + (f", {notes} notes" if notes else "")

        def trained(name: str) -> str:
            found = train(made[name], binaries=binaries, folder=folder)
            result.first[name] = found
            if reference is not None and name in reference.first:
                compare(found, reference.first[name])
            return f"{found['loss']:.4f}, {found['grad_norm']:.5f}"

        def command(*words: str) -> str:
            attempt([binaries / "sepo", words[0], made["sepo"], *words[1:]], binaries=binaries, folder=folder)
            return "runs"

        if not cell("versions", install):
            return result
        cell("`sepo doctor`", doctor)
        cell("tests of the contract and of LLaMA Board", tests)
        for one in made:
            cell(f"{one}: loss, gradient norm", lambda one=one: trained(one))
        cell("`sepo plan`", lambda: command("plan"))
        cell("`sepo bench`", lambda: command("bench", "--rounds", "1", "--stages", "host_dpo,sepo", "--no-memory"))
    return result


HEAD = """# Versions of LLaMA-Factory

0.9.5 runs the whole test suite (`make test`). `make hosts` runs the other versions, each in an environment of its own:
the tests of the contract and of LLaMA Board, two training steps of every stage and of the host's own dpo on the same
tiny models, and `sepo doctor`, `plan` and `bench`. The loss of the first step must be that of 0.9.5 within {loss:g}
(transformers 4 logs four decimals), its gradient norm within a relative {gradient:g}. `make test` also compares the
contract with the files of 0.9.4.

Other versions are not refused: `sepo doctor` notes what was not tested, and calls wrong what does not load, what sepo
needs and lacks, and names of the host that are missing. transformers has all of these names from 4.56 on; under
transformers 4 a pair's prompt is computed twice by GPT-2 (with a warning), whose layers drop the arguments of the row.
The main branch has no release; the commit that was run is below.

"""


def page(versions: Sequence[Version], results: Sequence[Result | None], commit: str) -> str:
    """Return the page for results; None for a version that was not run."""
    rows = list(dict.fromkeys(row for result in results if result is not None for row in result.cells))
    lines = [["", *(version.title for version in versions)], ["---"] * (len(versions) + 1)]
    for row in rows:
        lines.append([row, *("not run" if result is None else result.cells.get(row, "-") for result in results)])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    failed = [text for result in results if result is not None for text in result.failed]
    outcome = "**Failed**: see the table." if failed else "Nothing failed."
    when = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine}"
    of_main = f" main is {commit}." if commit else ""
    return f"{HEAD.format(loss=LOSS, gradient=GRADIENT)}{when}.{of_main} {outcome}\n\n{table}"


def commit_of(checkout: Path) -> str:
    """Return the commit of a checkout, or "an unknown commit"."""
    words = ["git", "-C", checkout, "rev-parse", "--short=10", "HEAD"]
    inside = (checkout / ".git").exists()
    done = subprocess.run(words, capture_output=True, text=True, check=False) if inside else None
    return done.stdout.strip() if done is not None and done.returncode == 0 else "an unknown commit"


def main() -> int:
    """Run, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--main", type=Path, help="a checkout of LLaMA-Factory's main branch")
    options = parser.parse_args()
    if options.main is not None and not (options.main / "src" / "llamafactory").is_dir():
        parser.error(f"--main: {options.main} is no checkout of LLaMA-Factory: it has no src/llamafactory")
    versions, results = columns(options.main), []
    with tempfile.TemporaryDirectory() as name:
        world = Path(name)
        two_steps.make_models(world)
        for version in versions:
            absent = version.title.startswith("main") and version.checkout is None
            reference = results[0] if results else None
            results.append(None if absent else measure(version, world, reference))
            later = [None] * (len(versions) - len(results))  # an interrupted run leaves what it has
            PAGE.write_text(page(versions, [*results, *later], commit_of(options.main) if options.main else ""))
    print(PAGE.read_text())
    return int(any(result.failed for result in results if result is not None))


if __name__ == "__main__":
    sys.exit(main())
