"""The page of `make hosts`, and its comparison of first steps."""

from pathlib import Path

import pytest

from tests.packaging.hosts import Result, Version, columns, compare, page

STEP = {"loss": 0.7, "grad_norm": 2.0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": 0.70005, "grad_norm": 2.0001}, None),
        ({"loss": 0.7002}, "loss 0.700200, on 0.9.5 0.700000"),
        ({"grad_norm": 2.0004}, "gradient norm 2.000400, on 0.9.5 2.000000"),
        ({"loss": float("nan")}, "loss nan"),
        ({"grad_norm": float("nan")}, "gradient norm nan"),
    ],
)
def test_a_first_step_that_differs_is_an_error(changed, message):
    if message is None:
        compare({**STEP, **changed}, STEP)
        return
    with pytest.raises(RuntimeError, match=message):
        compare({**STEP, **changed}, STEP)


def test_the_page_has_a_column_per_version_and_says_what_failed_or_was_not_run():
    good = Result({"versions": "llamafactory 1", "`sepo plan`": "runs"})
    bad = Result({"versions": "llamafactory 2", "`sepo plan`": "**failed**: no plan"}, ["two, `sepo plan`: no plan"])
    made = page([Version("one"), Version("two"), Version("main")], [good, bad, None], "abc")
    assert made.splitlines()[-4:] == [
        "|  | one | two | main |",
        "| --- | --- | --- | --- |",
        "| versions | llamafactory 1 | llamafactory 2 | not run |",
        "| `sepo plan` | runs | **failed**: no plan | not run |",
    ]
    assert "main is abc. **Failed**: see the table." in made
    assert "Nothing failed." in page([Version("one")], [good], "")


def test_the_tested_sets_are_the_columns():
    """0.9.5 is the extra's; each column beside it is a set of `Host.tested`."""
    from sepo.installation import LLAMAFACTORY

    made = columns(Path("checkout"))
    assert made[0].title == "0.9.5"
    assert len(made) - 1 == len(LLAMAFACTORY.tested)
