"""Built-in judges by worked examples and properties; registered ones; refused names, options and expected answers."""

import re
import sys
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sepo.errors import SepoError
from sepo.judges import Judge, available_judges, find_judge, is_absent
from tests.support.packages import JUDGE_EXAMPLE, on_path, write_example, write_package

TEXT = st.text(max_size=20)
WORD = st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True)


@pytest.mark.parametrize(
    ("options", "response", "expected", "right"),
    [
        ({}, "Paris", "Paris", True),
        ({}, "  Paris\n", "Paris", True),
        ({}, "New \n York", "New York", True),
        ({}, "paris", "Paris", False),
        ({"ignore_case": True}, "STRASSE", "straße", True),
        ({"keep_whitespace": True}, "Paris\n", "Paris", False),
        ({"keep_whitespace": True}, " a", " a", True),
        ({}, "It is Paris", "Paris", False),
        ({}, "8", 8, True),
        ({}, "8", 8.0, True),
        ({}, "8.5", 8.5, True),
        ({}, "eight", [8, "eight", None], True),
        ({}, "nine", [8, "eight"], False),
        ({"extract": r"#### (\S+)"}, "#### 3 no:\n#### 4", "4", True),
        ({"extract": r"#### (\S+)"}, "#### 4 no:\n#### 3", "4", False),
        ({"extract": r"#### (\S+)"}, "4", "4", False),
        ({"extract": r"\d+"}, "so 3, or 4.", "4", True),
        ({"extract": r"(a)|b"}, "b", "b", False),
    ],
)
def test_exact(options, response, expected, right):
    assert find_judge("exact", **options)(response, expected) is right


@pytest.mark.parametrize(
    ("options", "response", "expected", "right"),
    [
        ({}, "It has 8 legs.", "8", True),
        ({}, "It has 18 legs.", "8", True),
        ({"whole_words": True}, "It has 18 legs.", "8", False),
        ({"whole_words": True}, "It has (8) legs.", "8", True),
        ({"whole_words": True}, "a C++ class", "C++", True),
        ({}, "It has 8 legs.", ["6", "8"], True),
        ({}, "It has 4 legs.", ["6", "8"], False),
        ({}, "It has 8 legs.", {"required": ["8", "legs"]}, True),
        ({}, "It has 8 wings.", {"required": ["8", "legs"]}, False),
        ({}, "It has 8 legs.", {"required": "8", "forbidden": ["wings", "tail"]}, True),
        ({}, "It has 8 legs and a tail.", {"required": "8", "forbidden": ["wings", "tail"]}, False),
        ({}, "", {"required": None, "forbidden": "wings"}, True),
        ({}, "has Legs", {"required": "legs", "forbidden": []}, False),
        ({"ignore_case": True}, "has Legs", {"required": "legs"}, True),
        ({"ignore_case": True}, "has WINGS", {"required": "has", "forbidden": "wings"}, False),
        ({}, "New\nYork", "New York", True),
        ({"keep_whitespace": True}, "New\nYork", "New York", False),
        ({"extract": "Answer: (.*)"}, "8? Answer: 6", "8", False),
        ({"extract": "Answer: (.*)"}, "8", {"forbidden": "6"}, False),
    ],
)
def test_contains(options, response, expected, right):
    assert find_judge("contains", **options)(response, expected) is right


@pytest.mark.parametrize(
    ("options", "response", "expected", "right"),
    [
        ({}, "It has 8 legs.", r"\b8\b", True),
        ({}, "It has 18 legs.", r"\b8\b", False),
        ({}, "It has 6 legs.", [r"\b8\b", r"\b6\b"], True),
        ({}, "EIGHT", "eight", False),
        ({"ignore_case": True}, "EIGHT", "eight", True),
        ({"whole_response": True}, "8 legs", "8", False),
        ({"whole_response": True}, " 8\n", r"\d", True),
        ({"extract": "A: (.*)"}, "8\nA: 6", "8", False),
    ],
)
def test_regex(options, response, expected, right):
    assert find_judge("regex", **options)(response, expected) is right


@pytest.mark.parametrize(
    ("response", "expected", "right"),
    [
        ("The answer is 0.5.", "1/2", True),
        (r"So \boxed{\frac{2}{4}}.", r"\frac{1}{2}", True),
        ("$x^2+2x$", "x(x+2)", True),
        ("$x^2+2x+1$", "x(x+2)", False),
        ("It has 8 legs and 2 wings", 8, False),
        ("It has 2 wings and 8 legs", 8, True),
        ("1,000", "1000", True),
        (r"$\{2, 1\}$", r"$\{1,2\}$", True),
        ("4", ["3", "4"], True),
        ("I do not know", "4", False),
        ("", "4", False),
        (r"\boxed{\frac{1}{0}}", "4", False),
    ],
)
def test_math(response, expected, right):
    assert find_judge("math")(response, expected) is right


def test_math_extracts_before_it_compares():
    assert find_judge("math", extract=r"A: (.*)")("A: 3\nlast: 4", "6/2") is True
    assert find_judge("math", extract=r"A: (.*)")("3", "3") is False


def test_math_without_the_main_thread():
    """math-verify's time limit is a signal, which other threads cannot set."""
    found = []
    thread = threading.Thread(target=lambda: found.append(find_judge("math")("so 0.5", "1/2")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize("expected", ["?!", "$", "\\"])
def test_math_refuses_what_is_no_expression(expected):
    with pytest.raises(SepoError, match=r"the expected answer .* is not a mathematical expression; expected a number"):
        find_judge("math").read(expected)


def test_math_without_its_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(
        SepoError, match=r"judge 'math' needs the package math-verify, which .*; run: pip install .*math"
    ):
        find_judge("math")


@given(TEXT.filter(str.strip), st.booleans(), st.booleans())
def test_every_text_is_right_for_itself(text, ignore_case, keep_whitespace):
    options = {"ignore_case": ignore_case, "keep_whitespace": keep_whitespace}
    assert find_judge("exact", **options)(text, text)
    assert find_judge("contains", **options)(f"so: {text} .", text)
    assert find_judge("regex")(text, re.escape(text))


@given(TEXT, TEXT, st.booleans())
@example("a  b", "A b", True)
def test_what_is_exactly_right_is_contained_and_matches_whole(response, expected, ignore_case):
    if is_absent(expected):
        return
    if find_judge("exact", ignore_case=ignore_case)(response, expected):
        assert find_judge("contains", ignore_case=ignore_case)(response, expected)
    exactly = find_judge("exact", keep_whitespace=True)(response.strip(), expected)
    assert find_judge("regex", whole_response=True)(response, re.escape(expected)) is exactly


@given(TEXT, st.lists(WORD, max_size=3), st.lists(WORD, max_size=3), st.booleans())
def test_contains_is_its_definition(response, required, forbidden, whole_words):
    if not required and not forbidden:
        return
    text = " ".join(response.split())

    def occurs(word):
        pieces = re.findall(r"\w+", text)
        return word in pieces if whole_words else word in text

    judge = find_judge("contains", whole_words=whole_words)
    right = all(map(occurs, required)) and not any(map(occurs, forbidden))
    assert judge(response, {"required": required, "forbidden": forbidden}) is right
    if required:
        assert judge(response, required) is any(map(occurs, required))


@given(
    st.recursive(
        st.none() | st.sampled_from(["  ", float("nan")]), lambda inner: st.lists(inner) | st.dictionaries(WORD, inner)
    )
)
def test_no_value_is_an_absent_answer_for_every_judge(value):
    assert is_absent(value)
    for name in ("exact", "contains", "regex", "math"):
        with pytest.raises(SepoError, match="the expected answer"):
            find_judge(name).read(value)


@pytest.mark.parametrize("value", [0, False, "no", [None, "a"], {"required": [], "forbidden": ["x"]}])
def test_a_value_is_no_absent_answer(value):
    assert not is_absent(value)


@pytest.mark.parametrize(
    ("name", "expected", "message"),
    [
        ("exact", True, "the expected answer is True, expected a text, a number, or a list"),
        ("exact", {"required": "a"}, "the expected answer is {'required': 'a'}, expected a text"),
        ("exact", [["a"]], r"the expected answer is \[\['a'\]\], expected a text"),
        (
            "contains",
            {"requird": "a"},
            "has the field 'requird', expected required or forbidden. Did you mean 'req",
        ),
        ("regex", "(8", r"the regular expression '\(8' does not compile \(missing \)"),
        ("regex", ["8", "*"], r"the regular expression '\*' does not compile \(nothing to repeat"),
    ],
)
def test_invalid_expected_answers_are_refused(name, expected, message):
    with pytest.raises(SepoError, match=message):
        find_judge(name).read(expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("exat", {}, "unknown judge 'exat'; available: exact, contains, regex, math.* Did you mean 'exact'"),
        (
            "exact",
            {"whole_words": True},
            "judge 'exact' has no option 'whole_words'; its options: ignore_case, kee",
        ),
        ("exact", {"ignore_cas": "true"}, "Did you mean 'ignore_case'"),
        ("exact", {"ignore_case": "yes"}, "ignore_case of judge 'exact' is 'yes', expected true or false"),
        ("exact", {"extract": True}, "extract of judge 'exact' is True, expected a regular expression"),
        ("regex", {"extract": "("}, r"the regular expression '\(' does not compile"),
    ],
)
def test_invalid_names_and_options_are_refused(name, options, message):
    with pytest.raises(SepoError, match=message):
        find_judge(name, **options)


def test_options_are_also_read_as_words():
    assert find_judge("exact", ignore_case="True")("a", "A")
    assert not find_judge("exact", ignore_case="false")("a", "A")


CODE = """
from sepo.errors import SepoError
from sepo.judges import Judge

def as_long(response, expected):
    return len(response) <= expected

def checked(value):
    if value < 1:
        raise SepoError(f"the expected answer is {value!r}, expected at least 1.")
    return value

limited = Judge(as_long, checked)
number = 3

def raises(response, expected):
    return response[0] == expected

def counts(response, expected):
    return len(response)
"""
ENTRIES = {name: f"team_judges:{name}" for name in ("as_long", "limited", "number", "raises", "counts", "missing")}


@pytest.fixture
def registered(tmp_path):
    with on_path(write_package(tmp_path, "team-judges", {"judges": {**ENTRIES, "exact": "team_judges:as_long"}}, CODE)):
        yield


def test_functions_and_judges_of_other_packages(registered):
    assert set(available_judges()) == {"exact", "contains", "regex", "math", *ENTRIES}
    for name in ("as_long", "limited"):
        judge = find_judge(name)
        assert isinstance(judge, Judge)
        assert (judge("abc", 3), judge("abcd", 3)) == (True, False)
    with pytest.raises(SepoError, match="the expected answer is 0, expected at least 1"):
        find_judge("limited")("", 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "number",
            {},
            r"judge 'number' of package team-judges 0.1 \(team_judges:number\) is of type int, expected",
        ),
        ("missing", {}, "judge 'missing' of package team-judges 0.1 .* cannot be loaded"),
        (
            "as_long",
            {"extract": "a"},
            "'as_long' is registered by team-judges 0.1 and has no options, found extract",
        ),
        ("exact", {}, "judge 'exact' is built in, and package team-judges 0.1 registers it too"),
    ],
)
def test_unusable_registered_judges_are_refused(registered, name, options, message):
    with pytest.raises(SepoError, match=message):
        find_judge(name, **options)


def test_a_judge_that_fails_names_the_response(registered):
    with pytest.raises(SepoError, match=r"failed on the response '' and the expected answer 'a' \(IndexError: string"):
        find_judge("raises")("", "a")
    with pytest.raises(SepoError, match="the judge returned 3, expected True or False"):
        find_judge("counts")("abc", 1)


def test_doctor_lists_registered_judges(registered):
    from sepo.cli.doctor import registered_findings

    found = {finding.text: finding.good for finding in registered_findings(())}
    assert found["judge 'limited' of package team-judges 0.1 (team_judges:limited)"] is True
    assert sorted(found.values()) == [False] * 3 + [True] * 4


def test_the_example_of_a_package(tmp_path):
    with on_path(write_example(tmp_path, JUDGE_EXAMPLE)):
        judge = find_judge("about")
        assert (judge("from 1 to 3.14", "3.1416"), judge("3.2", 3.1416), judge("none", 3)) == (True, False, False)
        with pytest.raises(SepoError, match="the expected answer is 'pi', expected a number"):
            judge.read("pi")


def test_the_page_shows_the_example_and_every_judge_with_its_options():
    page = (JUDGE_EXAMPLE.parents[1] / "docs" / "judges.md").read_text()
    for ending, language in (("own_judge.py", "py"), ("pyproject.toml", "toml")):
        (block,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        assert block in (JUDGE_EXAMPLE / ending).read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    *lines, last = block.strip().splitlines()
    names = {}
    exec("\n".join([*lines, f"found = {last}"]), names)
    assert names["found"] is True
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", page, re.MULTILINE))
    assert tuple(rows) == available_judges()
    for name, options in rows.items():
        with pytest.raises(SepoError, match=f"its options: {', '.join(re.findall(r'`(.*?)`', options))}\\."):
            find_judge(name, nothing="")
