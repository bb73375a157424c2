"""`sepo demo`: the SePO pipeline on a real small model and pairs with known errors, on a CPU, in minutes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepo.demo.dataset import write_dataset
from sepo.demo.model import default_model_directory, prepare_model
from sepo.errors import SepoError
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
_SHOWN_ANSWERS = 4


def run_demo(output: Path) -> dict[str, Any]:
    """Run the pipeline and print the selected tokens and the effect of training.

    Args:
        output: directory for data, models, scores and results; steps that finished there are not repeated.

    Returns:
        The results, as written to ``results.json`` in that directory.

    Raises:
        SepoError: a package that the demonstration needs is not installed, or a step failed.
    """
    from sepo.hosts.llamafactory.recipe import load_host

    with _environment(_ENVIRONMENT):  # some variables are read when the host is imported
        load_host("demo")
        try:
            from rich.console import Console
        except ImportError as error:
            command = install_command(LLAMAFACTORY.name, "demo")
            raise SepoError(f"rich is not installed, but the demo needs it; run: {command}") from error
        return _run(output.resolve(), Console(highlight=False, soft_wrap=True))


def _run(output: Path, console: Console) -> dict[str, Any]:
    started = time.monotonic()
    console.print("[bold]1. A real model:[/] SmolLM2-135M-Instruct, from an installed package")
    model = prepare_model(default_model_directory())
    console.print(f"   {model}")
    console.print("[bold]2. Pairs with known errors,[/] generated")
    data = write_dataset(output / "data")
    console.print(f"   {data}")
    console.print("[bold]3. The pipeline:[/] base SFT, oracle DPO, token scores, SePO on 30 % of the tokens")
    policy = _run_chain(model, data, output)
    console.print("[bold]4. Results[/]")
    results = _evaluate(model, data, policy)
    results["seconds"] = round(time.monotonic() - started)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    _show(console, results, model, policy, data)
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


def _run_chain(model: Path, data: Path, output: Path) -> Path:
    import yaml

    from sepo.hosts.llamafactory.pipeline import run_pipeline

    recipe = yaml.safe_load(resources.files("sepo.demo").joinpath("recipe.yaml").read_text(encoding="utf-8"))
    paths = {
        "model_name_or_path": str(model),
        "dataset_dir": str(data),
        "output_dir": str(output),
        "token_scores_dir": str(output / "scores"),
    }
    steps = run_pipeline({**recipe, **paths})
    return Path(steps[-1].recipe["output_dir"])


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def _evaluate(model_folder: Path, data: Path, policy: Path) -> dict[str, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sepo.demo.analysis import found_share, preference_accuracy, rejected_answers

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    settings = json.loads((policy / "sepo_settings.json").read_text(encoding="utf-8"))
    ratio = settings["select"]["rejected_ratio"]
    answers = rejected_answers(
        Path(settings["token_scores"]["train"]), _rows(data / "demo_pairs.json"), tokenizer=tokenizer, ratio=ratio
    )
    found, known = found_share(answers)
    tokens = sum(len(answer.tokens) for answer in answers)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32").eval()
    heldout = _rows(data / "demo_heldout.json")
    before = preference_accuracy(model, heldout, tokenizer=tokenizer)
    tuned = PeftModel.from_pretrained(model, str(policy)).eval()
    after = preference_accuracy(tuned, heldout, tokenizer=tokenizer)
    return {
        "rejected_tokens": tokens,
        "rejected_tokens_selected": sum(int(answer.selected.sum()) for answer in answers),
        "known_wrong_tokens": known,
        "known_wrong_tokens_selected": found,
        "heldout_pairs": len(heldout),
        "heldout_accuracy": {"before": before[0], "after": after[0]},
        "heldout_margin_nats_per_token": {"before": before[1], "after": after[1]},
        "heldout_auroc": _oracle_auroc(policy),
        "examples": [_example(answer) for answer in answers[:_SHOWN_ANSWERS]],
    }


def _oracle_auroc(policy: Path) -> dict[str, dict[str, float]]:
    """Measure how well the oracle finds known errors in held-out facts, and how well plain surprisal does."""
    from sepo.credit.data import read_pairs
    from sepo.credit.run import CreditRequest, measure
    from sepo.credit.scorers import CreditModels
    from sepo.hosts.llamafactory.credit import LlamaFactoryCredit
    from sepo.runs.oracle_of_run import read_run

    run = read_run(policy)
    request = CreditRequest(
        "demo",
        ["oracle", "surprisal"],
        CreditModels(run.oracle.base, run.oracle, None),
        template=run.template,
        cutoff_len=run.cutoff_len or 2048,
        dtype=run.dtype,
        ratio=run.ratio or 0.3,
    )
    with warnings.catch_warnings():  # the oracle is an adapter on top of the merged base
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        found = measure(read_pairs("demo"), request, open_host=LlamaFactoryCredit)["scorers"]
    return {
        name: {"auroc": of["auroc"]["mean"], "low": of["auroc"]["low"], "high": of["auroc"]["high"]}
        for name, of in found.items()
    }


def _example(answer: Any) -> list[dict[str, Any]]:
    marks = zip(answer.tokens, answer.wrong.tolist(), answer.selected.tolist(), strict=True)
    return [{"token": token, "wrong": wrong, "selected": selected} for token, wrong, selected in marks]


def _show(console: Any, results: Mapping[str, Any], model: Path, policy: Path, data: Path) -> None:
    from rich.text import Text

    selected, tokens = results["rejected_tokens_selected"], results["rejected_tokens"]
    found, known = results["known_wrong_tokens_selected"], results["known_wrong_tokens"]
    accuracy, margin = results["heldout_accuracy"], results["heldout_margin_nats_per_token"]
    console.print(f"   tokens selected in rejected responses: {selected:,} of {tokens:,} ({selected / tokens:.0%})")
    console.print(f"   known wrong tokens among them:         {found:,} of {known:,} ([bold]{found / known:.0%}[/])")
    console.print(
        f"   held-out preference accuracy:          {accuracy['before']:.0%} before, [bold]{accuracy['after']:.0%}[/] "
        f"after ({results['heldout_pairs']} pairs; margin {margin['before']:+.2f} to {margin['after']:+.2f} nats)"
    )
    oracle, surprisal = (results["heldout_auroc"][name] for name in ("oracle", "surprisal"))
    console.print(
        f"   held-out errors found by the oracle:   AUROC [bold]{oracle['auroc']:.2f}[/] \\[{oracle['low']:.2f}, "
        f"{oracle['high']:.2f}] (plain surprisal, on errors this obvious: {surprisal['auroc']:.2f})"
    )
    console.print("   rejected responses, [reverse]selected[/] tokens and [red]known errors[/]:")
    for example in results["examples"]:
        console.print(Text("     ").append_text(_marked(example)))
    chat = [
        "llamafactory-cli", "chat", "--model_name_or_path", str(model), "--adapter_name_or_path", str(policy),
        "--template", "smollm",
    ]  # fmt: skip
    console.print(f"[bold]Adapter:[/] {policy}\n[bold]Data:[/]    {data}\n[bold]Chat:[/]    {shlex.join(chat)}")
    console.print(f"done in {results['seconds'] // 60} min {results['seconds'] % 60} s")


def _marked(example: Sequence[Mapping[str, Any]]) -> Any:
    from rich.text import Text

    line = Text()
    for token in example:
        style = " ".join(name for name, on in (("red", token["wrong"]), ("reverse", token["selected"])) if on)
        line.append(str(token["token"]).replace("<|im_end|>", "⏎").replace("\n", ""), style=style)
    return line
