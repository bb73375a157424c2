"""The warning of a run whose chosen responses lose likelihood."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from sepo.objectives import resolve_method
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.reference import OWN_START, PrecomputedReference
from sepo.recipe.settings import RunSettings
from sepo.report.facts import overview
from sepo.report.reading import read_subject
from sepo.runs.log_reader import LOG_FILE, read_log
from sepo.runs.log_writer import RunLog
from sepo.runs.runaway import BOUND, FIRST_PAIRS, PAIRS, ChosenLikelihood, RunawayWarning
from sepo.runs.status import run_status, status_lines

DPO = RunSettings("minor_dpo", resolve_method("dpo"), None, None, 1, None)
SEPO = replace(DPO, method=resolve_method("sepo"))
SIMPO = replace(DPO, method=resolve_method("simpo"))
OTHER = ModelSpec("other")


class Run:
    """A run of 16 pairs per step: 2 processes, batches of 4, 2 batches per step."""

    def __init__(self, folder, settings, *, weight=0.0, first=True, resumed=0):
        self.args = SimpleNamespace(
            output_dir=str(folder), train_batch_size=4, gradient_accumulation_steps=2, world_size=2
        )
        self.state = SimpleNamespace(global_step=resumed, max_steps=100, is_world_process_zero=first)
        self.callbacks = [RunLog(), RunawayWarning(settings, chosen_nll_weight=weight)]
        for each in self.callbacks:
            each.on_train_begin(self.args, self.state, None)

    def log(self, step, **numbers):
        self.state.global_step = step
        for each in self.callbacks:
            each.on_log(self.args, self.state, None, logs={name.replace("_", "/", 1): x for name, x in numbers.items()})


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "sepo.runs.runaway"]


def test_the_change_is_that_of_means_over_enough_pairs():
    likelihood = ChosenLikelihood()
    assert [likelihood.add(value, FIRST_PAIRS / 2) for value in (-1.0, -2.0)] == [None, None]  # the first mean, -1.5
    assert likelihood.add(-3.0, PAIRS / 2) is None
    assert likelihood.add(-4.0, PAIRS / 2) == pytest.approx(-2.0)
    assert likelihood.add(-6.0, PAIRS / 2) == pytest.approx(-3.5)
    assert likelihood.add(-10.0, 3 * PAIRS) == pytest.approx(-8.5)  # enough by itself
    assert likelihood.add(-2.0, PAIRS / 2) == pytest.approx((-2.0 - 6 * 10.0) / 7 + 1.5)
    assert ChosenLikelihood(0.0).add(-2.0, PAIRS) == -2.0


@pytest.mark.parametrize("excess", [-0.01, 0.01])
def test_a_run_is_warned_of_once_and_beyond_the_bound_only(tmp_path, caplog, excess):
    run = Run(tmp_path, DPO)
    run.log(4, loss=0.6, kl_chosen=0.1, kl_rejected=-9.0)
    run.log(8, loss=0.1, kl_chosen=-BOUND - excess, kl_rejected=-9.0)
    run.log(12, loss=0.1, kl_chosen=-BOUND - 5 * max(excess, 0), kl_rejected=-9.0)
    found = warnings(caplog)
    logged = read_log(tmp_path).warnings
    assert len(found) == len(logged) == (excess > 0)
    if found:
        assert found[0].startswith(f"step 8: the chosen responses have lost {BOUND + excess:.1f} nats per token")
        assert "Set pref_ftx: 0.2, or a lower learning_rate" in found[0]
        assert (logged[0]["step"], f"step 8: {logged[0]['text']}") == (8, found[0])


def test_a_single_noisy_batch_is_no_warning(tmp_path, caplog):
    run = Run(tmp_path, DPO)
    for step in range(1, 4):
        run.log(step, loss=0.6, kl_chosen=-9.0)  # 48 pairs
    assert not warnings(caplog)
    run.log(4, loss=0.6, kl_chosen=-9.0)
    assert len(warnings(caplog)) == 1


def test_without_a_reference_the_change_is_since_the_first_pairs(tmp_path, caplog):
    run = Run(tmp_path, SIMPO)
    run.log(4, loss=0.6, logps_chosen_mean=-5.0)
    run.log(8, loss=0.6, logps_chosen_mean=-5.9)
    run.log(8, eval_loss=0.6)
    assert not warnings(caplog)
    run.log(12, loss=0.6, logps_chosen_mean=-7.0)
    assert "lost 2.0 nats per token" in warnings(caplog)[0]


@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        (DPO, True),
        (replace(DPO, ref_model=OTHER), False),
        (replace(DPO, precomputed_reference=PrecomputedReference(OTHER, OWN_START)), True),
        (replace(DPO, precomputed_reference=PrecomputedReference(OTHER, "ref_model")), False),
        (SIMPO, False),
    ],
)
def test_a_reference_that_is_not_the_policy_before_training_says_nothing_about_it(tmp_path, caplog, settings, starts):
    assert settings.reference_is_start is starts
    run = Run(tmp_path, settings)
    for step in (4, 8):
        run.log(step, loss=0.6, kl_chosen=-3.0, logps_chosen_mean=-3.0)
    assert bool(warnings(caplog)) is starts


def test_the_text_names_the_keys_and_tokens_of_the_run(tmp_path, caplog):
    whole = replace(SEPO, method=resolve_method("sepo", pref_ftx=0.5))  # its objective reads all chosen tokens
    for number, (settings, weight) in enumerate([(SEPO, 0.0), (SEPO, 0.25), (SIMPO, 0.0), (whole, 0.0)]):
        run = Run(tmp_path / str(number), settings, weight=weight)
        run.log(4, loss=0.6, logps_chosen_mean=0.0)
        run.log(8, loss=0.6, logps_chosen_mean=-9.0)
    selected, anchored, *others = warnings(caplog)
    assert "the selected tokens of the chosen responses" in selected
    assert len(others) == 2
    assert "selected" not in "".join([anchored, *others])
    assert "Set a greater pref_ftx than 0.25, or a lower learning_rate" in anchored


def test_other_processes_and_values_that_are_not_numbers_are_silent(tmp_path, caplog):
    other = Run(tmp_path, DPO, first=False)
    other.log(4, loss=0.6, kl_chosen=-9.0)
    run = Run(tmp_path, DPO)
    for step, value in ((4, float("nan")), (8, "-9"), (12, None)):
        run.log(step, loss=0.6, kl_chosen=value)
    assert not warnings(caplog)
    run.log(16, loss=0.6, kl_chosen=-9.0)
    assert len(warnings(caplog)) == 1


def test_a_resumed_run_has_the_first_pairs_of_its_log(tmp_path, caplog):
    first = Run(tmp_path, SIMPO)
    for step, value in ((4, -1.0), (8, -1.5), (12, -1.8)):
        first.log(step, loss=0.6, logps_chosen_mean=value)
    resumed = Run(tmp_path, SIMPO, resumed=8)
    resumed.log(12, loss=0.6, logps_chosen_mean=-1.0 - BOUND - 0.1)
    assert len(warnings(caplog)) == 1
    again = Run(tmp_path, SIMPO, resumed=12)
    again.log(16, loss=0.6, logps_chosen_mean=-9.0)
    assert len(warnings(caplog)) == 1  # it was warned of before
    earlier = Run(tmp_path, SIMPO, resumed=8)
    earlier.log(12, loss=0.6, logps_chosen_mean=-9.0)
    assert len(warnings(caplog)) == 2  # step 12 is repeated


def test_a_resumed_run_without_its_log_has_the_first_pairs_after_it(tmp_path, caplog):
    resumed = Run(tmp_path, SIMPO, resumed=8)
    resumed.log(12, loss=0.6, logps_chosen_mean=-9.0)
    resumed.log(16, loss=0.6, logps_chosen_mean=-9.5)
    assert not warnings(caplog)


def test_a_new_run_in_the_same_directory_begins_anew(tmp_path, caplog):
    for value in (-1.0, -9.0):
        run = Run(tmp_path, SIMPO)
        run.log(4, loss=0.6, logps_chosen_mean=value)
        run.log(8, loss=0.6, logps_chosen_mean=value)
    assert not warnings(caplog)


def test_status_and_report_have_the_warning(tmp_path):
    run = Run(tmp_path, DPO)
    run.log(4, loss=0.6, kl_chosen=-9.0)
    (text,) = run_status(tmp_path)["warnings"]
    assert text.startswith("step 4: the chosen responses have lost 9.0 nats")
    assert f"warning: {text}" in status_lines(run_status(tmp_path))
    facts = {fact.key: fact.values for fact in overview([read_subject(tmp_path)])}
    assert facts["Warnings"] == [text]
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write(json.dumps({"event": "warning", "step": 5, "time": 1.0, "text": 3}) + "\n")
    assert run_status(tmp_path)["warnings"] == [text]
    assert run_status(tmp_path)["unread_lines"] == 1
