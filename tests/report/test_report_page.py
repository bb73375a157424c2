"""The page as text: its contents, that it is inert, and that it stays small."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sepo.report.facts import comparisons, overview
from sepo.report.page import PAGE_MARK, charts, page, with_unique_names
from sepo.report.subject import Pair, Side, Subject
from sepo.report.visible import visible
from tests.support.subjects import HOSTILE, demo_subject, hostile_subject, opening

VOID = {"meta", "link", "input", "wbr", "br", "img"}


class Parsed(HTMLParser):
    """Elements with their attributes, the text of scripts and styles, and all other text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.code, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        (self.code if inside in ("script", "style") else self.texts).append(data)


def made(*subjects, **options):
    named = with_unique_names(subjects)
    return page(named, charts(named), **options)


NO_CHARTS = {"log": [], "spreads": {}}
"""Overrides for a subject without charts, which take a tenth of a second each."""


@pytest.fixture(scope="module")
def demo():
    return made(demo_subject())


@pytest.fixture(scope="module")
def hostile():
    return made(hostile_subject(), hostile_subject(name=HOSTILE[4]))


def test_the_page_has_its_parts(demo):
    parsed = Parsed(demo.text)
    assert parsed.open == []
    identifiers = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for section in ("overview", "tokens", "scores", "training", "settings", "heat-map-data", "filters", "spoken"):
        assert section in identifiers
    for _, attributes in parsed.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(attributes.get(name, "").split()) <= set(identifiers)
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in identifiers
    assert sum(tag == "svg" for tag, _ in parsed.elements) == sum(tag == "figure" for tag, _ in parsed.elements) == 13
    assert "60 rows of 120" in re.sub(r"\s+", " ", demo.text)
    assert demo.summary == "60 of 120 rows"
    assert PAGE_MARK in demo.text[:300]


@pytest.fixture(scope="module")
def compared():
    subjects = [demo_subject(name=name, **NO_CHARTS) for name in ("dpo-1", "sepo-1")]
    return page(subjects, charts(subjects), opening=opening())


@pytest.fixture(scope="module")
def hostile_comparison():
    subjects = [demo_subject(name=name, pairs=[], **NO_CHARTS) for name in ("dpo-1", "sepo-1")]
    return page(subjects, [], opening=opening(HOSTILE[:2], text="".join(HOSTILE), error=HOSTILE[9]))


def test_a_comparison_comes_first(compared):
    parsed = Parsed(compared.text)
    assert parsed.open == []
    sections = [attributes["id"] for tag, attributes in parsed.elements if tag == "section"]
    assert sections == ["comparison", "curves", "overview", "tokens", "settings"]
    identifiers = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    links = [attributes["href"][1:] for tag, attributes in parsed.elements if tag == "a"]
    assert set(links) <= set(identifiers)
    assert {"comparison", "curves"} <= set(links)
    drawn = [attributes["data-chart"] for tag, attributes in parsed.elements if tag == "figure"]
    assert drawn == [chart.key for chart in opening().charts]
    assert sum(tag == "h1" for tag, _ in parsed.elements) == 1
    text = re.sub(r"\s+", " ", "".join(parsed.texts))
    first = text[text.index("Comparison of dpo, sepo 24") :]
    order = ["24 held-out pairs", "Failed runs", "ValueError: out of memory", "60.0% [50.0, 70.0]", "+9.0 points",
             "the interval excludes 0", "All measures", "A note.", "Share of pairs.",
             "Curves of training."]  # fmt: skip
    assert [part for part in order if part not in first] == []
    assert sorted(order, key=first.index) == order


def test_a_report_of_runs_has_no_comparison(demo):
    assert not {"comparison", "curves"} & {attributes.get("id") for _, attributes in Parsed(demo.text).elements}


def test_hostile_text_of_a_comparison_is_inert_and_shown(hostile_comparison):
    parsed = Parsed(hostile_comparison.text)
    assert parsed.open == []
    assert sum(tag == "script" for tag, _ in parsed.elements) == 2
    assert sum(tag == "style" for tag, _ in parsed.elements) == 1
    for tag, attributes in parsed.elements:
        assert tag != "img"
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    hostile_comparison.text.encode()
    text = "".join(parsed.texts)
    for attack in HOSTILE:
        assert text.count(visible(attack)) >= 6  # headings, cells, sentences, a label


def test_the_page_loads_nothing(demo, hostile, compared, hostile_comparison):
    for text in (demo.text, hostile.text, compared.text, hostile_comparison.text):
        parsed = Parsed(text)
        for tag, attributes in parsed.elements:
            assert tag not in ("img", "iframe", "object", "embed", "audio", "video", "base")
            assert "src" not in attributes
            address = attributes.get("href", "#")
            assert address.startswith("#") or (tag, address) == ("link", "data:,")


def test_only_the_pages_own_script_and_style_may_run(demo, hostile, compared, hostile_comparison):
    for text in (demo.text, hostile.text, compared.text, hostile_comparison.text):
        parsed = Parsed(text)
        (policy,) = [a["content"] for _, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        style, data, script = parsed.code
        for code, kind in ((script, "script-src"), (style, "style-src")):
            digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
            assert f"{kind} 'sha256-{digest}'" in policy
        json.loads(data)


def test_hostile_text_is_inert_and_shown(hostile):
    parsed = Parsed(hostile.text)
    assert sum(tag == "script" for tag, _ in parsed.elements) == 2
    for _, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    hostile.text.encode()
    text = "".join(parsed.texts)
    for attack in HOSTILE:
        assert text.count(visible(attack)) >= 4  # a recipe's key and value, a version, what is missing
    assert "not a number" in text
    assert "\x00" not in hostile.text
    assert "(10,000 characters)" in text


def test_templates_of_the_data_are_not_run():
    name = "{{ 7 * 191 }}{% for x in y %}"
    assert "1337" not in made(demo_subject(name=name, recipe={name: name}, log=[], spreads={}, pairs=[])).text


def test_the_page_is_the_same_every_time():
    assert made(demo_subject(log=[])).text == made(demo_subject(log=[])).text


def test_missing_data_is_reported_first():
    text = made(demo_subject(missing=["The log stops in a line."], **NO_CHARTS)).text
    assert text.index("The log stops in a line.") < text.index('id="tokens"')
    assert "Not everything could be read" not in made(demo_subject(rows=1, **NO_CHARTS)).text


def test_a_subject_without_anything_has_a_page_too():
    empty = made(Subject("empty", Path("/runs/empty"), "run", missing=["Nothing is there."]))
    parsed = Parsed(empty.text)
    assert "No rows could be shown" in empty.text
    assert empty.summary == "no rows"
    assert parsed.open == []
    assert not [tag for tag, _ in parsed.elements if tag == "svg"]


def long_subject(name, *, rows, tokens):
    rng = np.random.default_rng(0)
    words = [f" word{number}" for number in range(tokens)]
    pairs = []
    for row in range(rows):
        sides = [
            Side(tuple(words), rng.normal(size=tokens).astype(np.float32), rng.random(tokens) < 0.3) for _ in range(2)
        ]
        pairs.append(Pair(row, f"<{'p' * 400}>", *sides))
    return Subject(name, Path(name), "store", pairs, rows)


def test_many_subjects_with_many_long_rows_stay_under_five_megabytes():
    subjects = [long_subject(f"store {number}", rows=60, tokens=900) for number in range(6)]
    big = made(*subjects)
    assert 4_500_000 < len(big.text.encode()) <= 4_800_000
    shown, of = map(int, re.fullmatch(r"(\d+) of (\d+) rows", big.summary).groups())
    assert 10 < shown < of == 60
    assert f"{shown} rows of 60" in re.sub(r"\s+", " ", big.text)


def test_a_limit_of_any_size_is_kept():
    subject = demo_subject(**NO_CHARTS)
    whole = made(subject)
    rows = []
    for limit in (0, len(whole.text) // 2, len(whole.text) - 5_000, 4_800_000):
        small = made(subject, limit=limit)
        rows.append(int(small.summary.split()[0]))
        assert len(small.text.encode()) <= limit or rows[-1] == 0
    assert rows == sorted(rows)
    assert (rows[0], rows[-1]) == (0, 60)
    assert 0 < rows[-2] < 60


def test_large_content_outside_of_the_rows_is_truncated():
    recipe = {f"key{number}.{'k' * 5000}": "v" * 5000 for number in range(3000)}
    text = made(demo_subject(recipe=recipe, missing=["m" * 9000] * 500, name="n" * 5000, rows=1, **NO_CHARTS)).text
    assert len(text.encode()) < 1_000_000
    assert "2,600 more are not shown" in text
    assert "And 460 more." in text


@pytest.mark.parametrize(
    ("places", "names", "unique"),
    [
        (["/a/one", "/a/two"], ["one", "two"], ["one", "two"]),
        (["/a/run", "/b/run"], ["run", "run"], ["a/run", "b/run"]),
        (["/a/x/run", "/b/x/run", "/c/y"], ["run", "run", "other"], ["a/x/run", "b/x/run", "other"]),
        (["/s/12ab", "/s/34cd"], ["oracle", "oracle"], ["oracle (12ab)", "oracle (34cd)"]),
        (["/a/run", "/a/run"], ["run", "run"], ["run [1]", "run [2]"]),
        (["/a/b", "/a/c"], ["", "tab\there"], ["unnamed", "tab␉here"]),
    ],
)
def test_names_of_subjects_are_unique(places, names, unique):
    subjects = [Subject(name, Path(place), "run") for place, name in zip(places, names, strict=True)]
    assert [subject.name for subject in with_unique_names(subjects)] == unique


def facts_of(**changed):
    return {fact.key: fact.values[0] for fact in overview([demo_subject(rows=2, **NO_CHARTS, **changed)])}


SELECT = {"chosen_ratio": 0.3, "rejected_ratio": 0.3, "unit": "token", "scope": "response", "span_tokens": 3}


@pytest.mark.parametrize(
    ("settings", "chosen", "rejected"),
    [
        ({"rule": "floor", "count": "ratio"}, "ratio 30 %", "ratio 30 %"),
        ({"rule": "mean"}, "scores above the mean of the response", "scores below the mean of the response"),
        ({"count": "shorter"}, "as many as the shorter response has", "as many as the shorter response has"),
    ],
)
def test_a_ratio_is_claimed_only_if_it_is_read(settings, chosen, rejected):
    settings = {"select": {**SELECT, **settings}, "rejected_selects": "lowest"}
    facts = facts_of(settings=settings)
    assert facts["Selected, chosen"].split(" rows, ")[1] == chosen
    assert facts["Selected, rejected"].split(" rows, ")[1] == rejected
    subject = demo_subject(rows=2, log=[], settings=settings)
    (accumulation,) = [chart for chart in charts([subject]) if chart.key == "accumulation"]
    assert bool(accumulation.marks) == (chosen == "ratio 30 %")


def test_with_a_scorer_that_flips_its_sign_the_highest_are_selected_in_both():
    settings = {"select": {**SELECT, "rule": "mean"}, "rejected_selects": "highest"}
    assert facts_of(settings=settings)["Selected, rejected"].endswith("scores above the mean of the response")
    flipped = demo_subject(rows=1, settings=settings, **NO_CHARTS)
    sentence = "in both responses the highest scores are selected."
    assert sentence in made(flipped).text
    assert sentence not in made(demo_subject(rows=1, **NO_CHARTS)).text
    assert "the lowest or the highest" in made(flipped, demo_subject(rows=1, **NO_CHARTS)).text
    every = demo_subject(rows=1, settings={"select": None}, **NO_CHARTS)
    assert "all of them train the policy." in made(every).text


def test_the_overview_has_weights_sums_and_empty_pairs():
    settings = {
        "objective": "dpo+orpo", "factors": {"dpo": 0.8, "orpo": 0.2},
        "token_weight": {"name": "importance", "clip": 1.5, "low": 0.7, "high": 1.3},
    }  # fmt: skip
    log = [{"step": 1, "select/chosen_effective": 12.5, "objective/empty_pair": 0.25}, {"step": 2, "loss": 1.0}]
    facts = {fact.key: fact.values[0] for fact in overview([demo_subject(pairs=[], settings=settings, log=log)])}
    assert facts["Objective"] == "0.8 × dpo + 0.2 × orpo"
    assert facts["Token weight"] == "importance (clip 1.5, low 0.7, high 1.3)"
    assert facts["Effective tokens, chosen"] == "12.5"
    assert "Effective tokens, rejected" not in facts
    assert facts["Pairs without selected tokens"] == "25 %"
    side = Side(
        ("a", "b", "c"), np.zeros(3, np.float32), np.array([True, True, False]), None, np.array([3.0, 1.0, 0.0])
    )
    text = made(demo_subject(pairs=[Pair(0, "q", side, side)], settings=settings, **NO_CHARTS)).text
    assert "1.6 of 2 selected tokens, mean of 1 rows" in text  # (3 + 1)^2 / (9 + 1)
    assert "The outline of a token is as strong as its weight in the loss" in text
    plain = facts_of()
    assert plain["Objective"] == "sepo"
    assert not {"Token weight", "Effective tokens, chosen", "Pairs without selected tokens"} & set(plain)
    for broken in ({"objective": 3, "factors": [1], "token_weight": "x"}, {"factors": {"dpo": "0.8"}, "select": 3}):
        assert "Token weight" not in facts_of(settings=broken)


def test_settings_are_compared_key_by_key():
    first, second = demo_subject(recipe={"a": 1, "b": {"c": [1, None, True]}}), demo_subject(recipe={"a": 2, "d": {}})
    (recipe,) = [part for part in comparisons([first, second]) if part.title == "Recipe"]
    rows = [(fact.key, list(fact.values), fact.differs) for fact in recipe.rows]
    assert rows == [("a", ["1", "2"], True), ("b.c", ["1, none, true", ""], True), ("d", ["", "{}"], True)]


def test_the_overview_has_the_selected_share():
    facts = {fact.key: fact.values[0] for fact in overview([demo_subject()])}
    pairs = demo_subject().pairs
    kept = sum(int(pair.chosen.selected.sum()) for pair in pairs)
    tokens = sum(len(pair.chosen.tokens) for pair in pairs)
    assert facts["Selected, chosen"] == f"{100 * kept / tokens:.3g} % of {tokens:,} tokens in 60 rows, ratio 30 %"
    assert facts["Tokens scored by"].startswith("oracle: ")
    without = dataclasses.replace(demo_subject(), pairs=[])
    facts = {fact.key: fact.values[0] for fact in overview([without])}
    assert facts["Selected, chosen"].endswith("at the last logged step, ratio 30 %")
