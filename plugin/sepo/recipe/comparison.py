"""The file of `sepo compare`: variants of one recipe, their runs, and how the runs are evaluated."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.recipe.keys import COMPARE_KEYS, PIPELINE_KEYS, SEPO_KEYS, as_number, keys_of, names_of, scalar_text, seeds_of
from sepo.recipe.resolve import unread_keys
from sepo.recipe.stage_names import is_sepo_stage

SECTIONS = ("variants", "grid")
"""Sections that make a recipe the file of a comparison."""

ORACLE_SECTIONS = ("base", "oracle")
"""Sections of `sepo pipeline` that train the oracle of the variants."""
_SAMPLING = ("pairs", "rounds")
"""Section and key of `sepo pipeline` with which each policy would have its own pairs."""
_OF_ANY_ORACLE = ("oracle_model_quantization_bit", "oracle_scores")
_NAMES_AN_ORACLE = tuple(name for name in keys_of("oracle") if name not in _OF_ANY_ORACLE)
_ALONE = "grid"
"""Name of the variant of a file that has a grid and no variants."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
_SAME_FOR_ALL = (
    "output_dir", "seed", "dataset_dir", "template", "eval_dataset", "val_size", "max_new_tokens", "temperature",
)  # fmt: skip
"""Keys that no variant may set: all runs have their own directories and seeds, and are evaluated on the same rows."""
_ROWS = ("cutoff_len", "max_samples")
"""Keys that a variant may set for training; its evaluation on rows of other data sets has the shared values."""
_REFERENCE = (
    "ref_model", "ref_model_revision", "ref_model_adapters", "ref_model_adapters_revision",
    "ref_model_quantization_bit",
)  # fmt: skip
"""Keys of the reference; that of the evaluation is the shared one, or the policy before training."""
_EVALUATES = ("eval_strategy", "do_eval", "load_best_model_at_end", "eval_on_start", "early_stopping_steps")


@dataclass(frozen=True)
class Variant:
    """One combination of keys that is compared.

    Args:
        name: unique name, part of the names of its runs.
        keys: the keys by which it differs from the shared recipe.
        group: its name without the keys of ``choose``; one variant of each group is chosen.
    """

    name: str
    keys: dict[str, Any]
    group: str


@dataclass(frozen=True)
class TrainingRun:
    """One training run of a comparison.

    Args:
        variant: the variant.
        seed: the seed.
        recipe: keys and values of the run.
    """

    variant: Variant
    seed: int
    recipe: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the run, and of its directory."""
        return f"{self.variant.name}-{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """A comparison as its file defines it.

    Args:
        output: directory of all runs and results.
        shared: keys of all training runs.
        variants: the variants, in the order of the file.
        seeds: seeds of each variant.
        baseline: the group that all others are compared with.
        choose: keys whose value is chosen on validation rows; empty if every variant is a result.
        choose_by: measure of the choice, ``accuracy`` or ``right``.
        heldout: name of the held-out data set.
        validation: keys that name the validation rows; empty if there are none.
        generate: number of prompts of the held-out rows that are answered.
        reference_measures: whether KL, and accuracy and margin of the log-ratio, are measured.
        judge: name of the judge of these answers, or None.
        judge_options: options of the judge.
        expected_column: column with the expected answers.
        pipeline: the sections and keys of `sepo pipeline` that train an oracle for the variants; None without one.
    """

    output: str
    shared: dict[str, Any]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    baseline: str
    choose: tuple[str, ...]
    choose_by: str
    heldout: str
    validation: dict[str, Any]
    generate: int
    reference_measures: bool
    judge: str | None
    judge_options: dict[str, str]
    expected_column: str
    pipeline: dict[str, Any] | None = None

    def oracle_recipe(self) -> dict[str, Any] | None:
        """Return the recipe of `sepo pipeline` whose first steps train the oracle, or None if there is none to train.

        Its seed is the first one, and it leaves out the rows that ``val_size`` splits off with this seed. The shared
        keys of a reference are for variants and evaluations; the oracle's reference is its base, or in its section.
        """
        if self.pipeline is None:
            return None
        kept = {name: value for name, value in self.shared.items() if name not in _REFERENCE}
        split = {name: value for name, value in self.validation.items() if name == "val_size"}
        return {**kept, **split, "seed": self.seeds[0], "output_dir": self.output, **self.pipeline}

    def with_oracle(self, keys: Mapping[str, Any]) -> Comparison:
        """Return the comparison whose variants share the keys of an oracle.

        Raises:
            SepoError: no variant uses an oracle, or the keys of a variant contradict each other.
        """
        found = replace(self, shared={**self.shared, **keys})
        if not any(uses_oracle(run.recipe) for run in found.runs()):
            raise SepoError(
                f"section '{next(iter(self.pipeline or ORACLE_SECTIONS))}' trains an oracle, but no variant uses one; "
                "remove the section, or add a variant of stage sepo or with token_scorer: oracle."
            )
        return found

    @property
    def groups(self) -> dict[str, list[Variant]]:
        """Variants by group, in the order of the file; one of each group is evaluated on the held-out rows."""
        found: dict[str, list[Variant]] = {}
        for variant in self.variants:
            found.setdefault(variant.group, []).append(variant)
        return found

    def runs(self) -> list[TrainingRun]:
        """Return all training runs: variants in the order of the file, each with all seeds.

        Shared keys of an oracle, a reference or a selection are left out of the runs that do not use these.

        Raises:
            SepoError: the keys of a variant contradict each other.
        """
        return [TrainingRun(variant, seed, self._recipe(variant, seed)) for variant in self.variants
                for seed in self.seeds]  # fmt: skip

    def _recipe(self, variant: Variant, seed: int) -> dict[str, Any]:
        both = {"do_train": True, **self.shared, **variant.keys}
        merged = {name: value for name, value in both.items() if value is not None}
        shared = [name for name in self.shared if name not in variant.keys]
        if is_sepo_stage(merged.get("stage")):
            try:
                unread: Sequence[str] = unread_keys(merged, shared)
            except SepoError as error:
                raise SepoError(f"variant '{variant.name}': {error}") from error
        else:
            unread = [name for name in shared if name in SEPO_KEYS]
        merged = {name: value for name, value in merged.items() if name not in unread}
        if any(merged.get(name) not in (None, False, "no", "NO") for name in _EVALUATES):
            merged |= self.validation
        elif "val_size" in self.validation:  # these rows are split off the training rows in any case
            merged["val_size"] = self.validation["val_size"]
        return {**merged, "seed": seed, "output_dir": f"{self.output}/runs/{variant.name}-{seed}"}

    def evaluated_recipe(self, run: TrainingRun, *, validation: bool = False) -> dict[str, Any]:
        """Return the recipe of a run with the rows of the evaluation, which are the same for all variants.

        Args:
            run: the run.
            validation: the validation rows; otherwise the held-out ones.
        """
        rows = self.validation if validation else {"eval_dataset": self.heldout}
        # The rows that val_size splits off depend on the rows that the run itself has read.
        replaced = (*(_ROWS if "eval_dataset" in rows else _ROWS[:1]), *_REFERENCE)
        dropped = ("eval_dataset", "val_size", *replaced)
        kept = {name: value for name, value in run.recipe.items() if name not in dropped}
        return {**kept, **{name: self.shared[name] for name in replaced if name in self.shared}, **rows}


def uses_oracle(recipe: Mapping[str, Any]) -> bool:
    """Return whether the recipe of a run names an oracle."""
    return any(name in recipe for name in _NAMES_AN_ORACLE)


def refuse_comparison(recipe: Mapping[str, Any]) -> None:
    """Raise if a recipe is the file of a comparison, which other commands than `sepo compare` do not read.

    Raises:
        SepoError: naming the section, and what other commands read.
    """
    for name in SECTIONS:
        if isinstance(recipe.get(name), Mapping):
            raise SepoError(
                f"section '{name}' is one of sepo compare; run sepo compare with this file, or name the recipe of one "
                "of its runs, OUTPUT_DIR/records/NAME-SEED.yaml."
            )


def read_comparison(recipe: Mapping[str, Any]) -> Comparison:
    """Read a comparison from the keys and values of its file.

    Args:
        recipe: shared keys, the sections ``variants``, ``grid``, ``base`` and ``oracle``, and the keys of
            ``COMPARE_KEYS`` and ``PIPELINE_KEYS``.

    Raises:
        SepoError: a section, a name or a key of the comparison is not valid.
    """
    if "policy" in recipe:
        raise SepoError("section 'policy' is one of sepo pipeline; set its keys on top, or in a variant.")
    for name in _SAMPLING:
        if recipe.get(name) is not None:
            raise SepoError(
                f"'{name}' is one of sepo pipeline: all variants of a comparison train on the same pairs; sample them "
                "with sepo pairs, set dataset and dataset_dir to them, and remove it."
            )
    shared = {
        str(name): value
        for name, value in recipe.items()
        if value is not None and name not in (*SECTIONS, *COMPARE_KEYS, *ORACLE_SECTIONS, *PIPELINE_KEYS)
    }
    if not shared.get("output_dir"):
        raise SepoError("output_dir is missing; set it to the directory of the runs and results of the comparison.")
    if not shared.get("eval_dataset"):
        raise SepoError("eval_dataset is missing; set it to held-out pairs, which no run is trained or chosen on.")
    if shared.get("overwrite_output_dir"):
        raise SepoError("overwrite_output_dir is set, but runs that were interrupted are resumed; remove it.")
    choose = names_of(recipe.get("choose"))
    variants = _variants(recipe, choose)
    values = {name: key.read(recipe[name]) for name, key in COMPARE_KEYS.items() if _is_scalar(recipe, name)}
    heldout, validation = str(_joined(shared.pop("eval_dataset"))), _validation(shared, values)
    _check_rows(shared, variants, heldout, validation)
    groups = list(dict.fromkeys(variant.group for variant in variants))
    baseline = values.get("baseline", groups[0])
    if baseline not in groups:
        raise SepoError(f"baseline is {baseline}, expected a variant: {_some(groups)}.{nearest(baseline, groups)}")
    judge = values.get("judge")
    found = Comparison(
        output=str(shared.pop("output_dir")).rstrip("/"),
        shared=shared,
        variants=tuple(variants),
        seeds=_seeds(recipe, shared),
        baseline=baseline,
        choose=choose,
        choose_by=values.get("choose_by") or ("right" if judge else "accuracy"),
        heldout=heldout,
        validation=validation,
        generate=values.get("generate", 0),
        reference_measures=values.get("reference_measures", True),
        judge=judge,
        judge_options=_judge_options(values.get("judge_options"), judge),
        expected_column=values.get("expected_column", ""),
        pipeline=_pipeline(recipe, shared, variants),
    )
    _check_choice(found)
    return found


def _pipeline(
    recipe: Mapping[str, Any], shared: Mapping[str, Any], variants: Sequence[Variant]
) -> dict[str, Any] | None:
    """Return the sections and keys that train the oracle; an empty section has the pipeline's defaults."""
    sections = {name: recipe[name] for name in ORACLE_SECTIONS if name in recipe}
    keys = {name: recipe[name] for name in PIPELINE_KEYS if recipe.get(name) is not None}
    if not sections:
        if keys:
            raise SepoError(
                f"{next(iter(keys))} is set, but no oracle is trained; add the section oracle (oracle: {{}} has the "
                "defaults of sepo pipeline), or remove it."
            )
        return None
    section = next(iter(sections))
    named = [("the file", shared), *((f"variant '{variant.name}'", variant.keys) for variant in variants)]
    for where, given in named:
        for name in _NAMES_AN_ORACLE:
            if given.get(name) is not None:
                raise SepoError(f"{where} sets {name}, and section '{section}' trains an oracle; remove one of them.")
    return {**sections, **keys}


def _is_scalar(recipe: Mapping[str, Any], name: str) -> bool:
    return recipe.get(name) is not None and name not in ("seeds", "choose")


def _joined(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _variants(recipe: Mapping[str, Any], choose: Sequence[str]) -> list[Variant]:
    section = recipe.get("variants")
    if section is None and not recipe.get("grid"):
        raise SepoError("there are no variants; add the section variants (NAME: keys), or grid (key: list of values).")
    if section is not None and (not isinstance(section, Mapping) or not section):
        raise SepoError("section 'variants' is no mapping; NAME: keys is expected.")
    named = {_ALONE: {}} if section is None else section
    common = _grid(recipe.get("grid"), "grid")
    found: list[Variant] = []
    for raw, keys in named.items():
        name = str(raw)
        if not _NAME.fullmatch(name):
            raise SepoError(f"variant '{name}': its name is part of file names; use letters, digits and . _ = + -")
        if keys is not None and not isinstance(keys, Mapping):
            raise SepoError(f"variant '{name}' is {keys!r}; keys and values are expected.")
        own = {str(key): value for key, value in (keys or {}).items()}
        grid = {**common, **_grid(own.pop("grid", None), f"variant '{name}': grid")}
        grid = {key: values for key, values in grid.items() if key not in own}  # a variant's own value is fixed
        for key in (*own, *grid):
            if key in (*_SAME_FOR_ALL, *COMPARE_KEYS, *SECTIONS, *ORACLE_SECTIONS, *PIPELINE_KEYS):
                raise SepoError(f"variant '{name}' sets {key}, which is the same for all variants; set it on top.")
        found += _combinations(name, own, grid, choose)
    names = [variant.name for variant in found]
    if len(set(names)) < len(names):
        raise SepoError(f"two variants are named {max(names, key=names.count)}; rename one.")
    for key in choose:
        if not any(key in variant.keys and variant.name != variant.group for variant in found):
            raise SepoError(f"choose names {key}, which is in no grid; add it to grid with its values.")
    return found


def _grid(section: Any, where: str) -> dict[str, list[Any]]:
    """Return the values by key; each is a scalar, as it is part of a name."""
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise SepoError(f"{where} is {section!r}; key: list of values is expected.")
    for key, values in section.items():
        if not isinstance(values, list) or not values:
            raise SepoError(f"{where}: {key} is {values!r}, expected a list of values.")
        texts = [scalar_text(value) for value in values]
        for value, text in zip(values, texts, strict=True):
            if isinstance(value, Mapping | list) or not _NAME.fullmatch(text):
                raise SepoError(
                    f"{where}: {key} has the value {value!r}, expected numbers and words that can be part of a file "
                    "name; name such a value as an entry of variants."
                )
        if len(set(texts)) < len(texts):
            raise SepoError(f"{where}: {key} has {max(texts, key=texts.count)} twice; remove one.")
    return {str(key): list(values) for key, values in section.items()}


def _combinations(
    name: str, own: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], choose: Sequence[str]
) -> list[Variant]:
    made = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        parts = {key: f"{key}={scalar_text(value)}" for key, value in chosen.items()}
        kept = [part for key, part in parts.items() if key not in choose]
        made.append(Variant("-".join([name, *parts.values()]), {**own, **chosen}, "-".join([name, *kept])))
    return made


def _seeds(recipe: Mapping[str, Any], shared: dict[str, Any]) -> tuple[int, ...]:
    alone = shared.pop("seed", None)
    given = recipe.get("seeds")
    if given is None:
        return (as_number("seed", 42 if alone is None else alone, int),)
    if alone is not None:
        raise SepoError("seed and seeds are both set; remove seed.")
    return seeds_of("seeds", given)


def _validation(shared: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    named, size = values.get("validation_dataset"), shared.pop("val_size", None)
    if named and size:
        raise SepoError("validation_dataset and val_size are both set; remove one.")
    return {"eval_dataset": named} if named else {"val_size": size} if size else {}


def _check_rows(
    shared: Mapping[str, Any], variants: Sequence[Variant], heldout: str, validation: Mapping[str, Any]
) -> None:
    """Refuse held-out or validation rows that are named as others, too, and evaluations without validation rows."""
    for variant in variants:
        merged = {**shared, **variant.keys}
        chosen_on = names_of(validation.get("eval_dataset"))
        used = {"dataset": names_of(merged.get("dataset")), "validation_dataset": chosen_on}
        for key, names in used.items():
            twice = sorted(set(names) & set(names_of(heldout)))
            if twice:
                raise SepoError(
                    f"variant '{variant.name}': eval_dataset and {key} both name {twice[0]}; held-out pairs must not "
                    "be used for training or choosing."
                )
        both = sorted(set(used["dataset"]) & set(chosen_on))
        if both:
            raise SepoError(f"variant '{variant.name}': dataset and validation_dataset both name {both[0]}.")
        evaluates = [name for name in _EVALUATES if merged.get(name) not in (None, False, "no", "NO")]
        if evaluates and not validation:
            raise SepoError(
                f"variant '{variant.name}': {evaluates[0]} is {merged[evaluates[0]]}, but there are no validation "
                "rows, and runs do not read the held-out eval_dataset; set validation_dataset or val_size."
            )


def _judge_options(options: dict[str, str] | None, judge: str | None) -> dict[str, str]:
    if options is None:
        return {}
    if judge is None:
        raise SepoError("judge_options is set without judge; set judge, or remove it.")
    return options


def _check_choice(comparison: Comparison) -> None:
    if comparison.choose and not comparison.validation:
        raise SepoError(
            f"choose names {comparison.choose[0]}, but there are no validation rows; set validation_dataset or "
            "val_size. The held-out eval_dataset chooses nothing."
        )
    if comparison.choose and comparison.choose_by == "accuracy" and not comparison.reference_measures:
        raise SepoError(
            "choose_by is accuracy, that of the log-ratio to the reference, but reference_measures is false; remove "
            "reference_measures, or choose by right."
        )
    if comparison.judge is None:
        if comparison.choose_by == "right":
            raise SepoError("choose_by is right, but there is no judge; set judge and expected_column.")
        if comparison.expected_column:
            raise SepoError("expected_column is set without judge; set judge, or remove it.")
    elif not comparison.generate:
        raise SepoError(f"judge is {comparison.judge}, but generate is 0; set generate to a number of prompts.")
