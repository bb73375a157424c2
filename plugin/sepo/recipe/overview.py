"""First screen of a run: what its recipe was resolved to, and the hyperparameters that are not the objective's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sepo.objectives import Method
from sepo.objectives.settings import Value
from sepo.objectives.token_weights import weight_record
from sepo.recipe.part_texts import shown, weight_text

Origin = Callable[[str], str]
"""Returns the place where a key was set, in words."""

_WIDTH = 78


@dataclass(frozen=True)
class Changed:
    """A hyperparameter with another value than the objective's default.

    Args:
        name: its name.
        value: its value in this run.
        default: the objective's default.
        origin: the key that sets it, and where.
    """

    name: str
    value: Value
    default: Value
    origin: str


@dataclass(frozen=True)
class Overview:
    """What a recipe was resolved to, for its user.

    Args:
        objective: name of the objective.
        rows: parts of the run and what they are, in words.
        changed: hyperparameters that differ from the objective's defaults.
    """

    objective: str
    rows: tuple[tuple[str, str], ...]
    changed: tuple[Changed, ...]

    def text(self, notes: tuple[str, ...] = ()) -> str:
        """Return the screen.

        Args:
            notes: lines about other keys.
        """
        lines = [f"{' sepo: settings of this run ':=^{_WIDTH}}", *_columns(self.rows)]
        if self.changed:
            values = [f"{shown(each.value)}, default {shown(each.default)}" for each in self.changed]
            table = _columns(zip(values, (f"({each.origin})" for each in self.changed), strict=True))
            lines.append(f"not the default of objective {self.objective}:")
            lines += [f"  {line}" for line in _columns(zip((each.name for each in self.changed), table, strict=True))]
        else:
            lines.append(f"all hyperparameters have the defaults of objective {self.objective}")
        return "\n".join([*lines, *(f"- {note}" for note in notes), "=" * _WIDTH])


def _columns(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return (f"{name:<{width}}  {value}" for name, value in rows)


def origin_of(given: Mapping[str, Any], origins: Mapping[str, str], *, stage: str) -> Origin:
    """Return the function that names the place where a key was set.

    Args:
        given: the keys and values of the recipe, without defaults.
        origins: the place of each key in words, such as ``pref_beta in recipe.yaml``; a key without one is named.
        stage: the recipe's stage, which sets the other keys.
    """
    return lambda key: origins.get(key, key) if given.get(key) is not None else f"stage {stage}"


def resolved_rows(
    method: Method, *, stage: str, origin: Origin, own_scorer: bool, reference: str, oracle: str | None
) -> tuple[tuple[str, str], ...]:
    """Return the rows of the screen.

    Args:
        method: the resolved method.
        stage: name of the stage.
        origin: where a key was set.
        own_scorer: whether the token scorer is the objective's.
        reference: the reference in words.
        oracle: the oracle in words, or None if there is none.
    """
    objective = " + ".join(f"{factor:g} {name}" for name, factor in method.factors.items()) or method.name
    weight = method.token_weight
    scorer = f"objective {method.name}" if own_scorer else origin("token_scorer")
    return (
        ("stage", f"{stage}  ({origin('stage')})"),
        ("objective", f"{objective}  ({origin('objective')})"),
        ("token scorer", f"{method.scorer}  ({scorer})"),
        ("selection", _selection(method)),
        *((("token weight", weight_text(weight_record(weight))),) if weight is not None else ()),
        ("reference", reference),
        *((("oracle", oracle),) if oracle is not None else ()),
    )


def _selection(method: Method) -> str:
    selector = method.selector
    if selector is None:
        return "all tokens"
    if selector.rule == "mean":
        beyond = "above" if method.token_scorer.rejected_largest else "above (rejected: below)"
        return f"tokens with a score {beyond} the mean of their response; a pair without one in a response has loss 0"
    unit = f"{selector.unit} (at least {selector.span_tokens} tokens)" if selector.unit == "span" else selector.unit
    if selector.count == "shorter":
        return f"as many tokens of each response as the shorter one has; unit {unit}"
    if selector.chosen_ratio == selector.rejected_ratio == 1.0:
        return "all tokens"
    return (
        f"{selector.chosen_ratio:.4g} of chosen and {selector.rejected_ratio:.4g} of rejected tokens; "
        f"unit {unit}, scope {selector.scope}, rule {selector.rule}"
    )
