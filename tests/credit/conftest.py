"""Shared fixtures of the tests of `sepo credit`: pairs with marked errors for the tiny models."""

import json

import pytest

from sepo.credit.data import checked_pairs

WORDS = ("legs", "wings", "tails", "eyes")


def rows(count=12):
    made = []
    for index in range(count):
        right, wrong = WORDS[index % 4], WORDS[(index + 1) % 4]
        tail = " and a tail of its own" * (index % 3)
        rejected = f"It has {index % 5} {wrong}{tail}. 🕷️"
        start = rejected.index(wrong)
        spans = [{"start": start, "end": start + len(wrong), "type": "Wrong-Word"}]
        if index % 3:
            spans.append({"start": 7, "end": 8, "type": "Wrong-Number"})
        made.append(
            {
                "conversations": [{"from": "human", "value": f"How many legs has creature number {index}?"}],
                "chosen": {"from": "gpt", "value": f"It has {index % 9} {right}{tail}."},
                "rejected": {"from": "gpt", "value": rejected},
                "rejected_error_spans": spans,
                "system": "Answer truly." if index % 4 == 0 else "",
            }
        )
    return made


@pytest.fixture(scope="session")
def marked_rows():
    return rows()


@pytest.fixture(scope="session")
def marked_pairs(marked_rows):
    return checked_pairs(marked_rows, name="rows")


@pytest.fixture(scope="session")
def marked_world(world, tmp_path_factory, marked_rows):
    """A data set `marked` of these rows, for the tiny models."""
    folder = tmp_path_factory.mktemp("marked")
    (folder / "marked.json").write_text(json.dumps(marked_rows))
    entry = {
        "file_name": "marked.json",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "system": "system"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"marked": entry}))
    return folder
