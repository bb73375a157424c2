"""The page in a real browser: display, keyboard and screen reader, and that no data is executed."""

import itertools
import math
import re

import numpy as np
import pytest

from sepo.report.heat_map import mean_margin
from sepo.report.page import charts, page, with_unique_names
from sepo.report.subject import Pair, Side
from sepo.report.visible import visible
from tests.support.browser import open_browser
from tests.support.subjects import HOSTILE, demo_subject, hostile_subject, opening

TAB, LEFT, UP, RIGHT, DOWN, END, HOME = "\ue004", "\ue012", "\ue013", "\ue014", "\ue015", "\ue010", "\ue011"
SCREENS = ((1280, 900), (390, 844))

CONTRAST = """
const channel = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
const parse = (text) => {
  const n = text.match(/[\\d.]+/g).map(Number);
  const scale = text.startsWith("color(srgb") ? 255 : 1;
  return [...n.slice(0, 3).map((v) => scale * v), n[3] ?? 1];
};
const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
function ground(node) {
  if (!node) return [255, 255, 255];
  const own = parse(getComputedStyle(node).backgroundColor);
  return own[3] === 1 ? own.slice(0, 3) : over(own, ground(node.parentElement));
}
const found = [];
const silent = new Set(["SCRIPT", "STYLE", "NOSCRIPT", "TITLE", "DESC"]);
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  const text = walker.currentNode.data.trim().slice(0, 40);
  if (!text || silent.has(node.tagName.toUpperCase())) continue;
  if (!node.checkVisibility() || node.closest(".unseen, :disabled")) continue;
  const style = getComputedStyle(node);
  const back = ground(node.closest("svg") ? node.closest("svg").parentElement : node);
  const ink = over(parse(node instanceof SVGElement ? style.fill : style.color), back);
  const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), text, node.className.baseVal ?? node.className]);
}
return found.sort((x, y) => x[0] - y[0]);
"""


def written(folder, name, *subjects, **options):
    named = with_unique_names(subjects)
    file = folder / name
    file.write_text(page(named, charts(named), **options).text, encoding="utf-8")
    assert file.stat().st_size < 5e6
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def subject():
    return demo_subject()


@pytest.fixture(scope="module")
def file(tmp_path_factory, subject):
    return written(tmp_path_factory.mktemp("page"), "report.html", subject)


@pytest.fixture
def opened(browser, file):
    """The page of a subject like the demo's, at its first visit; checks console messages and requests at the end."""
    browser.resize(*SCREENS[0])
    browser.prefer("light")
    browser.open(file)
    browser.run("localStorage.clear()")
    browser.open(file)
    yield browser
    assert browser.console() == []
    assert browser.requests() == [file.absolute().as_uri(), "data:,"] or browser.requests() == [
        file.absolute().as_uri()
    ]


def rows(browser):
    return [int(title.text.removeprefix("Row ").replace(",", "")) for title in browser.find_all("#rows h3")]


def fill(browser, selector, text):
    field = browser.find(selector)
    field.clear()
    field.send_keys(text)
    browser.run("arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", field)


def choose(browser, selector, value):
    browser.run(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        browser.find(selector),
        value,
    )


def test_the_heat_map_shows_scores_and_selection(opened, subject):
    assert rows(opened) == [pair.row for pair in subject.pairs[:5]]
    drawn = opened.run(
        "return [...document.querySelectorAll('#rows article:first-child .answer')].map((answer) =>"
        " [...answer.querySelectorAll('.token')].map((token) => {"
        "  const style = getComputedStyle(token);"
        "  return [token.textContent, token.getAttribute('aria-selected') === 'true', style.borderBottomColor,"
        "          style.backgroundColor]; }))"
    )
    first = subject.pairs[0]
    limit = np.quantile(np.abs([s for p in subject.pairs for a in (p.chosen, p.rejected) for s in a.scores]), 0.98)
    for tokens, side in zip(drawn, (first.chosen, first.rejected), strict=True):
        assert [text for text, *_ in tokens] == [token.strip() for token in side.tokens]
        assert [selected for _, selected, *_ in tokens] == side.selected.tolist()
        for (_, selected, border, ground), score in zip(tokens, side.scores, strict=True):
            assert border == ("rgb(28, 34, 42)" if selected else "rgba(0, 0, 0, 0)")
            red, _, blue, alpha = [*map(float, re.findall(r"[\d.]+", ground)), 1.0][:4]
            assert (blue > red) == (score > 0)
            assert math.isclose(alpha, min(1, abs(score) / limit), abs_tol=0.02)


def test_tokens_are_reached_and_spoken_by_keyboard(opened, subject):
    side = subject.pairs[0].chosen
    opened.run("document.querySelector('#per-page').focus()")
    opened.press(TAB)  # previous cannot be pressed on the first page
    opened.press(TAB)
    assert opened.run("return document.activeElement.className").startswith("token")
    rank = {place: number + 1 for number, place in enumerate(np.argsort(-side.scores, kind="stable").tolist())}
    for place in (0, 1, 2):
        score = f"{abs(side.scores[place]):.4f}" if abs(side.scores[place]) < 0.1 else f"{abs(side.scores[place]):.3f}"
        words = (
            f"{side.tokens[place].strip()}, score {'minus' if side.scores[place] < 0 else 'plus'} {score}, "
            f"{'selected' if side.selected[place] else 'not selected'}, "
            f"rank {rank[place]} of {len(side.tokens)} from the highest"
        )
        assert opened.find("#spoken").get_attribute("textContent") == words
        details = opened.find("#details").text
        assert ("not selected" in details) == (not side.selected[place])
        assert f"token {place + 1} of {len(side.tokens)}, chosen, row 0" in details
        opened.press(RIGHT)

    def at():
        return opened.run("return [...document.activeElement.parentElement.children].indexOf(document.activeElement)")

    opened.press(LEFT)
    assert at() == 2
    opened.press(END)
    assert at() == len(side.tokens) - 1
    opened.press(RIGHT)
    assert at() == len(side.tokens) - 1
    opened.press(HOME)
    opened.press(DOWN)
    below = at()
    tops = opened.run(
        "return [...document.activeElement.parentElement.children].map((t) => t.getBoundingClientRect().top)"
    )
    assert below > 0
    assert tops[below] > tops[0]
    opened.press(UP)
    assert at() == 0
    assert opened.run("return document.querySelectorAll('#rows .tokens:first-child [tabindex=\"0\"]').length") <= 10
    opened.press(TAB)
    assert "of the" not in opened.find("#spoken").text
    assert "rejected" in opened.find("#details").text
    assert opened.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("screen", SCREENS)
def test_the_focused_element_is_never_covered(opened, screen):
    opened.resize(*screen)
    opened.run("document.querySelector('.token').focus()")
    for _ in range(9):
        opened.press(TAB)
        opened.press(END)
        covered = opened.run(
            "const [token, bar, strip] = [document.activeElement, ...document.querySelectorAll('.bar, #details')]"
            ".map((node) => node.getBoundingClientRect());"
            "return token.top < bar.bottom - 1 || token.bottom > strip.top + 1"
        )
        assert opened.run("return document.activeElement.className").startswith("token")
        assert not covered


def test_rows_are_filtered_by_number(opened):
    fill(opened, "#filter-rows", "4, 10-14, 9999")
    assert rows(opened) == [4, 10, 12, 14]
    assert opened.find("#found").text == "4 of 60 rows match; shown: 1 to 4 of 4."
    fill(opened, "#filter-rows", "9999")
    assert rows(opened) == []
    assert opened.find("#found").text == "No row matches."
    fill(opened, "#filter-rows", "two")
    assert opened.find("#filter-rows").get_attribute("aria-invalid") == "true"
    assert "Expected row numbers such as" in opened.find("#found").text
    fill(opened, "#filter-rows", "")
    assert len(rows(opened)) == 5


def test_rows_are_found_by_text_of_prompts_and_responses(opened, subject):
    choose(opened, "#per-page", "20")
    for text in ("LESSON starts", subject.pairs[7].rejected.tokens[3].upper()):
        fill(opened, "#filter-text", text)
        every = []
        for pair in subject.pairs:
            texts = [pair.prompt, *("".join(side.tokens) for side in (pair.chosen, pair.rejected))]
            every += [pair.row] * any(text.strip().lower() in one.lower() for one in texts)
        assert every
        assert rows(opened) == every[:20]
    fill(opened, "#filter-text", "no such words anywhere")
    assert rows(opened) == []


def test_rows_are_sorted_by_margin(opened, subject):
    choose(opened, "#per-page", "20")
    by_margin = sorted(subject.pairs, key=mean_margin)
    choose(opened, "#sort", "low-0")
    assert rows(opened) == [pair.row for pair in by_margin[:20]]
    choose(opened, "#sort", "high-0")
    assert rows(opened) == [pair.row for pair in by_margin[::-1][:20]]
    assert f"margin +{mean_margin(by_margin[-1]):.3f}"[:-1] in opened.find("#rows article").text


def test_pages_are_turned(opened, subject):
    opened.find("#filters .next").click()
    assert rows(opened) == [pair.row for pair in subject.pairs[5:10]]
    opened.run("document.querySelector('.below').scrollIntoView({block: 'center'})")
    opened.find(".below .previous").click()
    assert rows(opened) == [pair.row for pair in subject.pairs[:5]]
    assert opened.find("#filters .previous").get_attribute("disabled")
    choose(opened, "#per-page", "1")
    assert rows(opened) == [0]


def test_the_theme_follows_the_system_until_it_is_chosen(opened, file):
    def ground():
        return opened.run("return getComputedStyle(document.body).backgroundColor")

    light = ground()
    opened.prefer("dark")
    dark = ground()
    assert dark != light
    button = opened.find("#theme")
    # The label changes in an event handler, after the style.
    opened.wait_for(lambda: button.get_attribute("aria-label") == "Switch to the light theme")
    button.click()
    assert ground() == light
    opened.open(file)
    assert ground() == light  # it is remembered
    opened.find("#theme").click()
    assert ground() == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(opened, scheme):
    opened.prefer(scheme)
    choose(opened, "#per-page", "20")
    choose(opened, "#sort", "high-0")  # the strongest colours
    opened.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = opened.run(CONTRAST)
    assert len(found) > 1000
    assert [item for item in found if item[0] < 4.5] == []


def test_charts_have_words_and_numbers(opened):
    for picture in opened.find_all("figure"):
        names = picture.find_element("css selector", "svg").get_attribute("aria-labelledby").split()
        title, description = (opened.run("return document.getElementById(arguments[0]).textContent", n) for n in names)
        assert title == picture.find_element("css selector", "h3").text
        assert len(description) > 10
    numbers = opened.find("[data-chart=training-loss] details")
    assert not numbers.find_element("css selector", "table").is_displayed()
    numbers.find_element("css selector", "summary").click()
    assert numbers.find_element("css selector", "table").is_displayed()


def check_names_and_headings(browser):
    bare = browser.run(
        "return [...document.querySelectorAll('button, a, input, select, summary, [tabindex=\"0\"]')]"
        ".filter((node) => node.checkVisibility())"
        ".filter((node) => !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length))"
        ".map((node) => node.outerHTML)"
    )
    assert bare == []
    levels = browser.run("return [...document.querySelectorAll('h1,h2,h3,h4,h5')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_focusable_element_has_a_name_and_is_visible(opened):
    check_names_and_headings(opened)
    for landmark in ("header", "nav", "main", "footer", "form[role=search]"):
        assert len(opened.find_all(landmark)) == 1


def overflow(browser):
    """Return elements that overflow the page to the right, without those that scroll by themselves."""
    return browser.run(
        "return document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('body *')]"
        ".filter((node) => node.getBoundingClientRect().right > innerWidth + 1)"
        ".map((node) => node.outerHTML.slice(0, 99))"
    )


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_is_wider_than_the_screen(opened, screen):
    opened.resize(*screen)
    opened.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert opened.run("return innerWidth") == screen[0]
    assert overflow(opened) == []


def test_a_hostile_subject_is_shown_and_nothing_of_it_runs(browser, tmp_path):
    file = written(tmp_path, "hostile.html", hostile_subject())
    for screen in SCREENS:
        browser.resize(*screen)
        browser.open(file)
        choose(browser, "#per-page", "20")
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert overflow(browser) == []
        for token in browser.find_all(".token")[:14]:
            browser.run("arguments[0].focus()", token)
        assert "infinity" in browser.run(
            "document.querySelectorAll('.token')[1].focus(); return document.querySelector('#spoken').textContent"
        )
        text = browser.run("return document.body.innerText")
        assert browser.run("return typeof window.attacked") == "undefined"
        assert browser.run("return document.querySelectorAll('script, img, style').length") == 3  # 2 scripts, 1 style
        prompts = browser.run("return [...document.querySelectorAll('.prompt')].map((node) => node.textContent)")
        assert prompts == [visible(attack) for attack in HOSTILE]
        tokens = browser.run("return [...document.querySelector('.tokens').children].map((token) => token.textContent)")
        assert tokens == [visible(attack) for attack in HOSTILE]
        assert "Row unknown" in text
        assert browser.console() == []
        assert browser.network_requests() == []


def test_tokens_of_the_chat_template_are_not_counted(browser, tmp_path):
    scores, flags = np.array([9.0, 1.0, 2.0, -1.0], np.float32), np.array([False, True, True, True])
    side = Side(("<think>", "It", " is", "."), scores, np.array([False, False, True, False]), flags)
    browser.open(written(tmp_path, "template.html", demo_subject(pairs=[Pair(0, "q", side, side)])))
    assert browser.find("#rows article h4").text == "Chosen · 4 tokens, 1 selected (33 %)"
    browser.run("document.querySelector('.token').focus()")
    spoken = browser.find("#spoken").get_attribute("textContent")
    assert spoken.startswith("<think>, score plus 9.000, the chat template's, not selected, rank")
    assert "the chat template's, not selected" in browser.find("#details").text
    browser.press(RIGHT)
    spoken = browser.find("#spoken").get_attribute("textContent")
    assert spoken == "It, score plus 1.000, not selected, rank 2 of 3 from the highest"


def test_weights_are_shown_by_outlines_and_numbers(browser, tmp_path):
    scores, selected = np.zeros(4, np.float32), np.array([True, True, True, False])
    weighed = Side(("full", " half", " minus", " none"), scores, selected, None, np.array([2.0, 1.0, -0.5, 0.0]))
    plain = Side(("x", "y"), scores[:2], selected[:2])
    pairs = [Pair(0, "q", weighed, plain)]
    browser.prefer("light")
    browser.open(written(tmp_path, "weights.html", demo_subject(pairs=pairs)))
    assert browser.find("#rows article h4").text == "Chosen · 4 tokens, 3 selected (75 %), effective number 1.2"
    drawn = browser.run(
        "return [...document.querySelectorAll('#rows .token')].map((token) => {"
        "  const style = getComputedStyle(token);"
        "  return [token.textContent, style.borderBottomStyle, style.borderBottomColor]; })"
    )
    outlines = [(text, style, [*map(float, re.findall(r"[\d.]+", colour)), 1.0]) for text, style, colour in drawn]
    opacity = {text: round(colour[3], 2) for text, _, colour in outlines}
    assert opacity == {"full": 1.0, "half": 0.5, "minus": 0.25, "none": 0.0, "x": 1.0, "y": 1.0}
    assert [text for text, style, _ in outlines if style == "dashed"] == ["minus"]
    assert drawn[-1][2] == "rgb(28, 34, 42)"  # as in a report without weights
    browser.run("document.querySelectorAll('.token')[2].focus()")
    assert "selected, weight −0.500" in browser.find("#details").text
    spoken = browser.find("#spoken").get_attribute("textContent")
    assert spoken.startswith("minus, score 0.0000, selected, weight minus 0.500, rank")
    browser.run("document.querySelectorAll('.token')[3].focus()")
    assert "weight" not in browser.find("#details").text
    legend = browser.find("#legend").text
    assert "fainter smaller weight" in legend
    assert "dashed negative weight" in legend
    browser.open(written(tmp_path, "plain.html", demo_subject(pairs=[Pair(0, "q", plain, plain)])))
    assert "weight" not in browser.find("#legend").text
    assert browser.console() == []


def test_two_subjects_are_side_by_side(browser, tmp_path, subject):
    scores = -subject.pairs[0].chosen.scores
    flipped = Pair(
        0, subject.pairs[0].prompt, Side(subject.pairs[0].chosen.tokens, scores, scores > 0), subject.pairs[0].rejected
    )
    other = demo_subject(pairs=[flipped, *subject.pairs[1:]], recipe={"learning_rate": 3e-4})
    file = written(tmp_path, "two.html", subject, other)
    for screen in SCREENS:
        browser.resize(*screen)
        browser.open(file)
        assert [node.text for node in browser.find_all("#rows article:first-child h4")] == ["policy [1]", "policy [2]"]
        texts = [node.text for node in browser.find_all("#rows article:first-child .tokens")]
        assert texts[0] == texts[2]
        assert texts[1] == texts[3]
        choose(browser, "#sort", "agreement")
        assert rows(browser)[0] == 0
        assert "of selected tokens in common" in browser.find("#rows article").text
        assert overflow(browser) == []
    legend = browser.run("return document.querySelector('[data-chart=training-loss] svg').textContent")
    assert "policy [1]" in legend
    assert "policy [2]" in legend
    differing = browser.run("return [...document.querySelectorAll('tr.differs th')].map((node) => node.textContent)")
    assert "learning_rate ≠ differs" in differing
    assert browser.console() == []
    assert browser.network_requests() == []


def test_a_comparison_is_read_in_both_themes_on_every_screen_and_without_scripts(browser, tmp_path):
    runs = [demo_subject(name=name, log=[], spreads={}, pairs=[], missing=["x"]) for name in ("dpo-1", "sepo-1")]
    file = written(tmp_path, "compared.html", *runs, opening=opening())
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(file)
        assert "69.0%" in browser.find("#comparison table").text
        assert browser.find("#curves svg").is_displayed()
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    for scheme, screen in zip(("light", "dark"), SCREENS, strict=True):
        browser.prefer(scheme)
        browser.resize(*screen)
        browser.open(file)
        browser.run("localStorage.clear()")
        browser.open(file)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert [item for item in browser.run(CONTRAST) if item[0] < 4.5] == []
        assert overflow(browser) == []
        check_names_and_headings(browser)
    assert browser.console() == []
    assert browser.network_requests() == []
