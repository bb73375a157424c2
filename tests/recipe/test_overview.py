"""The first screen of a run: what differs from the objective's defaults, and where the values come from."""

import pytest

from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.objectives.presets import BUILT_IN
from sepo.recipe.keys import HOST_KEYS, KEYS
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.overview import Changed
from sepo.recipe.resolve import resolve

NAMES = (*HOST_KEYS, "stage", "model_name_or_path", "adapter_name_or_path", "pref_loss", "quantization_bit")


def settings_of(origins=None, **recipe):
    return resolve({"model_name_or_path": "m", **recipe}, host_keys=NAMES, origins=origins)[1]


def test_the_screen_of_a_dpo_recipe_with_another_stage():
    """A DPO recipe's pref_beta raises Selective-DPO's beta tenfold."""
    keys = {"pref_beta": 0.1, "select_ratio": 0.25, "ref_model": "theirs", "simpo_gamma": 0.5, "pref_ftx": 0.2}
    origins = {name: f"{name} in dpo.yaml" for name in (*keys, "stage")} | {"select_ratio": "select_ratio over there"}
    settings = settings_of(origins, stage="selective_dpo", **keys)
    assert settings.first_screen == (
        "========================= sepo: settings of this run =========================\n"
        "stage         selective_dpo  (stage in dpo.yaml)\n"
        "objective     selective_dpo  (stage selective_dpo)\n"
        "token scorer  policy_ref  (objective selective_dpo)\n"
        "selection     0.25 of chosen and 0.25 of rejected tokens; unit token, scope response, rule floor\n"
        "reference     theirs  (ref_model in dpo.yaml)\n"
        "not the default of objective selective_dpo:\n"
        "  beta            0.1, default 0.01  (pref_beta in dpo.yaml)\n"
        "  chosen_ratio    0.25, default 0.4  (select_ratio over there)\n"
        "  rejected_ratio  0.25, default 0.4  (select_ratio over there)\n"
        "  pref_ftx        0.2, default 0     (pref_ftx in dpo.yaml)\n"
        "- simpo_gamma is set, but objective selective_dpo does not use it.\n"
        "=============================================================================="
    )


@pytest.mark.parametrize("objective", BUILT_IN)
def test_defaults_are_not_listed_even_if_they_are_written_out(objective):
    """An objective resolved from its own defaults has nothing to report."""
    scorer = "random" if resolve_method(objective).weighs_by_scores else "none"
    plain = settings_of(stage="minor_dpo", objective=objective, token_scorer=scorer)
    keys = {key: plain.method.hyperparameters[row.sets.name] for key, row in {**HOST_KEYS, **KEYS}.items()
            if row.sets is not None and row.sets.name in plain.method.hyperparameters
            and (row.sets.objectives is None or objective in row.sets.objectives)}  # fmt: skip
    again = settings_of(stage="minor_dpo", objective=objective, token_scorer=scorer, **keys)
    assert plain.overview.changed == again.overview.changed == ()
    assert f"all hyperparameters have the defaults of objective {objective}" in again.first_screen


@pytest.mark.parametrize(
    ("recipe", "changed"),
    [
        ({"stage": "treg", "treg_alpha": 0.5}, [Changed("alpha", 0.5, 0.25, "treg_alpha")]),
        ({"stage": "treg", "objective": "dpo"}, [Changed("treg_alpha", 0.25, 0.0, "stage treg")]),
        (
            {"stage": "treg", "objective": "minor_dpo", "treg_weighting": "static"},
            [Changed("treg_alpha", 0.25, 0.0, "stage treg"),
             Changed("treg_weighting", "static", "sequence", "treg_weighting")],
        ),
        (
            {"stage": "minor_dpo", "token_scorer": "random", "chosen_select_ratio": 0.5, "select_unit": "span",
             "select_span_tokens": 4},
            [Changed("chosen_ratio", 0.5, 0.3, "chosen_select_ratio"), Changed("unit", "span", "token", "select_unit"),
             Changed("span_tokens", 4, 3, "select_span_tokens")],
        ),
        (
            {"stage": "minor_dpo", "objective": "simpo", "simpo_gamma": "2"},
            [Changed("gamma", 2.0, resolve_method("simpo").hyperparameters["gamma"], "simpo_gamma")],
        ),
    ],
)  # fmt: skip
def test_values_and_origins(recipe, changed):
    assert list(settings_of(**recipe).overview.changed) == changed


def test_the_scorer_the_oracle_and_the_reference_are_named():
    oracle = {"oracle_model_adapters": "a", "oracle_base_model": "b"}
    rows = dict(settings_of({"token_scorer": "token_scorer on the command line"}, stage="minor_dpo",
                            token_scorer="oracle", ref_precompute=True, **oracle).overview.rows)  # fmt: skip
    assert rows["token scorer"] == "oracle  (token_scorer on the command line)"
    assert rows["oracle"] == "b with a over b"
    assert rows["reference"] == "the policy at its start, run before training (ref_precompute)"
    assert dict(settings_of(stage="sepo", **oracle).overview.rows)["reference"] == "none"
    assert ModelSpec("hub/m", ("a", "b"), revision="v1", adapter_revisions=(None, "v2")).text == "hub/m@v1 with a,b@v2"
    adapters = settings_of({"ref_model_adapters": "there"}, stage="minor_dpo", ref_model_adapters="a")
    assert dict(adapters.overview.rows)["reference"] == "m with a  (there)"


def test_a_selection_of_all_tokens_is_called_so():
    """A token weight that reads scores selects all tokens."""
    rows = dict(settings_of(stage="minor_dpo", objective="critical_dpo").overview.rows)
    assert (rows["selection"], rows["token weight"]) == ("all tokens", "critical")
    rows = dict(settings_of(stage="minor_dpo", objective="critical_dpo", rejected_select_ratio=0.5).overview.rows)
    assert rows["selection"].startswith("1 of chosen and 0.5 of rejected tokens")


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(SepoError, match="pref_ftx is 'much', expected a number"):
        settings_of(stage="minor_dpo", pref_ftx="much")
