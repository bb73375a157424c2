"""`sepo demo`: four ways to train a real small model on pairs of its own responses, compared on held-out questions."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepo.demo.dataset import write_dataset
from sepo.demo.model import default_model_directory, prepare_model
from sepo.errors import SepoError
from sepo.files import write_whole
from sepo.installation import LLAMAFACTORY, install_command

if TYPE_CHECKING:
    from rich.console import Console

# Threads that spin while they wait make a step many times slower as soon as another process needs a core.
_ENVIRONMENT = {
    "LLAMAFACTORY_VERBOSITY": "WARN",
    "TRANSFORMERS_VERBOSITY": "warning",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "passive",
}


def run_demo(output: Path) -> dict[str, Any]:
    """Train the variants of the demonstration, and print what each of them gained.

    Args:
        output: directory for data, models, scores and results; what finished there is not repeated.

    Returns:
        The results, as written to ``results.json`` in that directory; see ``sepo.demo.results``.

    Raises:
        SepoError: a package that the demonstration needs is not installed, or a run failed.
    """
    from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device

    with _environment(_ENVIRONMENT):  # some variables are read when the host is imported
        environment = dict(os.environ)
        quiet_on_one_device()
        load_host("demo")
        try:
            from rich.console import Console
        except ImportError as error:
            command = install_command(LLAMAFACTORY.name, "demo")
            raise SepoError(f"rich is not installed, but the demo needs it; run: {command}") from error
        return _run(output.resolve(), Console(highlight=False, soft_wrap=True), environment)


def demo_recipe(model: Path, data: Path, output: Path) -> dict[str, Any]:
    """Return the comparison of the demonstration.

    Args:
        model: directory of the model.
        data: directory of the data sets.
        output: directory for the results.
    """
    import yaml

    recipe = yaml.safe_load(resources.files("sepo.demo").joinpath("recipe.yaml").read_text(encoding="utf-8"))
    paths = {"model_name_or_path": str(model), "dataset_dir": str(data), "output_dir": str(output)}
    return {**recipe, **paths, "token_scores_dir": str(output / "scores")}


def _run(output: Path, console: Console, environment: Mapping[str, str]) -> dict[str, Any]:
    from sepo.demo.results import demo_results, print_results
    from sepo.hosts.llamafactory.compare import compare

    started = time.monotonic()
    console.print("[bold]1. A real model:[/] SmolLM2-135M-Instruct, from an installed package")
    model = prepare_model(default_model_directory())
    console.print(f"   {model}")
    console.print("[bold]2. Pairs of its own responses[/] to generated questions: a wrong one against a right one")
    data = write_dataset(output / "data")
    console.print(f"   {data}")
    console.print("[bold]3. Training:[/] SePO's oracle, then four ways to train, 20 steps each")
    recipe = demo_recipe(model, data, output)
    failed = compare(recipe, environment=environment)
    if failed:
        raise SepoError(f"a run of the demo failed; its error is above, its output in {output / 'records'}.")
    _evaluate_before(recipe, output)
    results = demo_results(recipe, output)
    results["seconds"] = round(time.monotonic() - started)
    write_whole(output / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    console.print("[bold]4. Results[/]")
    print_results(console, results)
    policy = output / "runs" / results["examples"]["run"]
    chat = [
        "llamafactory-cli", "chat", "--model_name_or_path", str(model), "--adapter_name_or_path", str(policy),
        "--template", "smollm",
    ]  # fmt: skip
    console.print("[bold]Next[/]")
    for what, command in (
        ("its answers", shlex.join(chat)),
        ("its tokens", shlex.join(["sepo", "show", str(policy)])),
        ("your data", "sepo compare yaml_examples/compare.yaml --dry-run"),
    ):
        console.print(f"   {what}: {command}")
    console.print(f"   all curves and tokens: {output / 'compare.html'}")
    console.print(f"done in {results['seconds'] // 60} min {results['seconds'] % 60} s")
    return results


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _evaluate_before(recipe: Mapping[str, Any], output: Path) -> None:
    """Answer the held-out questions with the model before training, as the comparison does for its variants."""
    from sepo.demo.results import BEFORE
    from sepo.evaluation.result import RESULT
    from sepo.hosts.llamafactory.evaluate import Request, evaluate_recipe
    from sepo.hosts.llamafactory.evaluate_recipe import EVALUATION, resolved_evaluation
    from sepo.hosts.llamafactory.expected_answers import JudgeRequest
    from sepo.recipe.comparison import read_comparison

    folder = output / "evaluations" / BEFORE
    if (folder / RESULT).is_file():
        return
    comparison = read_comparison(recipe)
    evaluated = comparison.evaluated_recipe(comparison.runs()[0], validation=False)
    evaluate_recipe(
        resolved_evaluation(evaluated, evaluated, file=Path("recipe"), use=replace(EVALUATION, compares=False)),
        request=Request(
            generate=comparison.generate,
            output=folder,
            name=BEFORE,
            judge=JudgeRequest(str(comparison.judge), comparison.judge_options, str(comparison.expected_column)),
        ),
    )
