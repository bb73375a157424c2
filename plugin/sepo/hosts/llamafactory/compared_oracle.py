"""The oracle that a comparison trains for its variants, by the steps of `sepo pipeline` before the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepo.console import print_lines
from sepo.errors import SepoError
from sepo.hosts.llamafactory.chain_checks import check_steps
from sepo.hosts.llamafactory.chain_status import RECORDS
from sepo.hosts.llamafactory.chain_steps import Step, plan_steps
from sepo.hosts.llamafactory.checks import check_datasets
from sepo.hosts.llamafactory.compared_runs import RunFiles, is_finished, reported, train_run
from sepo.hosts.llamafactory.pipeline import as_begun, declare_pairs, draw_sample, is_step_finished, record_step
from sepo.recipe.comparison import Comparison
from sepo.recipe.keys import keys_of, names_of


@dataclass(frozen=True)
class ComparedOracle:
    """The steps that train the oracle of a comparison.

    Args:
        steps: ``sample``, ``base`` unless the file has ``base: false``, and those of the oracles and of the models that
            they are compared with.
        template: the chat template of the policies.
        files: files of the steps.
    """

    steps: Sequence[Step]
    template: str | None
    files: RunFiles

    def makes(self, name: str) -> bool:
        """Return whether a name is the output of a step."""
        return any(step.recipe["output_dir"] == name for step in self.steps)

    def finished(self) -> set[str]:
        """Return the names of the finished steps, after checks of what an earlier call left.

        Raises:
            SepoError: a step was run with other settings, its directory is not of this comparison, or it is still being
                trained by a process of an earlier call.
        """
        return {step.name for step in self.steps if self._is_finished(step)}

    def _is_finished(self, step: Step) -> bool:
        if is_step_finished(step, self.files.root / RECORDS):
            return True
        return step.name != "sample" and is_finished(step, self.files)  # the sample is written again as a whole

    def train(self, *, environment: Mapping[str, str]) -> str | None:
        """Run the steps that are not finished, each from its last checkpoint if it has one.

        Args:
            environment: environment of the processes that train.

        Returns:
            None, or the error of the step that failed, as one line.
        """
        finished = self.finished()
        for number, step in enumerate(self.steps, start=1):
            title = f"[oracle {number}/{len(self.steps)}] {step.name}"
            if step.name in finished:
                print_lines([f"{title}: finished before"])
                continue
            trained = step.name != "sample"
            print_lines(
                [f"{title}: " + (f"training; output in {self.files.log(step)}" if trained else "drawing pairs")]
            )
            error = self._trained(step, environment) if trained else self._draw(step)
            print_lines([f"{title}: " + ("done" if error is None else f"failed: {error}")])
            if error is not None:
                return f"step '{step.name}' of the oracle failed: {error}"
        return None

    def _trained(self, step: Step, environment: Mapping[str, str]) -> str | None:
        try:
            declare_pairs(step)
        except SepoError as error:
            return reported(error)
        return train_run(step, self.files, environment=environment)

    def _draw(self, step: Step) -> str | None:
        try:
            draw_sample(step, template=self.template)
        except Exception as error:  # variants without an oracle are trained in any case
            return reported(error)
        self.files.record(step, "done").parent.mkdir(parents=True, exist_ok=True)
        record_step(step, self.files.root / RECORDS)
        return None


def with_oracle(comparison: Comparison) -> tuple[Comparison, ComparedOracle | None]:
    """Plan the oracle that a comparison trains.

    Args:
        comparison: the comparison as its file defines it.

    Returns:
        The comparison whose variants name that oracle, and the steps that train it; the comparison as it is and None if
        its file has no section ``base`` or ``oracle``.

    Raises:
        SepoError: a section is invalid, or no variant uses an oracle.
    """
    recipe = comparison.oracle_recipe()
    if recipe is None:
        return comparison, None
    *steps, policy = as_begun(plan_steps(recipe), recipe)
    keys: dict[str, Any] = {name: policy.recipe[name] for name in keys_of("oracle") if name in policy.recipe}
    files = RunFiles(Path(comparison.output), RECORDS)
    return comparison.with_oracle(keys), ComparedOracle(steps, comparison.shared.get("template"), files)


def check_oracle(oracle: ComparedOracle, comparison: Comparison) -> None:
    """Check the steps of an oracle before anything runs.

    Raises:
        SepoError: a step is invalid, or reads held-out or validation rows.
    """
    check_steps(oracle.steps)
    sample = oracle.steps[0].recipe
    if not sample.get("dataset"):
        raise SepoError("dataset is missing; set it on top: the pairs that base and oracle are trained on.")
    check_datasets(sample)
    folder = comparison.shared.get("dataset_dir") or "data"
    others = {"eval_dataset": comparison.heldout, "validation_dataset": comparison.validation.get("eval_dataset")}
    for step in oracle.steps:
        if (step.recipe.get("dataset_dir") or "data") != folder:
            continue
        for key, value in others.items():
            twice = sorted(set(names_of(value)) & set(names_of(step.recipe.get("dataset"))))
            if twice:
                raise SepoError(
                    f"step '{step.name}': dataset and {key} both name {twice[0]}; held-out and validation pairs must "
                    "not be used for training the oracle."
                )
