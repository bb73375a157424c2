"""LLaMA Board in a real browser: a visitor selects SePO, fills in the oracle, previews the command and trains."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from sepo.hosts.llamafactory.board.texts import LABELS
from sepo.hosts.llamafactory.recipe import check_recipe
from tests.support import tiny
from tests.support.browser import Browser, open_browser, require_browser
from tests.support.recipes import environment

PATIENCE = 150
FIELD = """
const labels = [...document.querySelectorAll('[data-testid="block-info"]')];
const found = labels.find(label => label.innerText.trim() === arguments[0] && label.offsetParent);
return found ? found.closest('.block').querySelector('input, textarea') : null;"""
OPTIONS = "return [...document.querySelectorAll('ul[role=listbox] li')].map(item => item.getAttribute('aria-label'))"
PRESS = """
const buttons = [...document.querySelectorAll('button')];
const button = buttons.find(button => button.innerText.trim() === arguments[0] && button.offsetParent);
button.scrollIntoView({block: 'center'});
button.click();"""
HOSTILE = '<img src=x onerror=document.title="pwned">; $(touch pwned)'


def waited(what, patience=20.0):
    """Poll a function of the page, which may be changing, and return its first true value."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            value = what()
        except StaleElementReferenceException:
            value = None
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"nothing came within {patience} s")


class BoardPage:
    """The board's training tab, accessed by visible labels."""

    def __init__(self, browser: Browser):
        self.browser = browser

    def field(self, label):
        field = waited(lambda: self.browser.run(FIELD, label))
        self.browser.run("arguments[0].scrollIntoView({block: 'center'})", field)
        return field

    def value(self, label):
        return self.field(label).get_attribute("value")

    def write(self, label, text):
        from selenium.webdriver import Keys

        field = self.field(label)
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    def options(self, label):
        """Focus a list, which makes gradio open it, and return its options."""
        self.browser.run("document.activeElement.blur()")
        waited(lambda: not self.browser.run(OPTIONS))
        self.field(label).click()
        return waited(lambda: self.browser.run(OPTIONS))

    def offers(self, label, options):
        """Wait until a list has these options: it is refilled after another field was changed."""
        shown = []
        with suppress(AssertionError):
            waited(lambda: shown.append(self.options(label)) or shown[-1] == options)
        assert shown[-1] == options

    def choose(self, label, option):
        self.options(label)
        waited(lambda: self._click(option))
        self.browser.run("document.activeElement.blur()")

    def _click(self, option):
        shown = self.browser.run(OPTIONS)
        if option in shown:
            self.browser.find_all("ul[role=listbox] li")[shown.index(option)].click()
        return option in shown

    def press(self, button):
        self.browser.run(PRESS, button)

    def text(self):
        return self.browser.run("return document.body.innerText")

    def code(self):
        return [block.text for block in self.browser.find_all("pre code")]


@contextmanager
def served(folder: Path):
    """Serve `sepo webui` in a directory, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = environment(
        GRADIO_SERVER_NAME="127.0.0.1", GRADIO_SERVER_PORT=str(port), GRADIO_ANALYTICS_ENABLED="False", BROWSER="true"
    )  # fmt: skip
    log = (folder / "board.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sepo", "webui"], cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT
    )
    address = f"http://127.0.0.1:{port}"

    def responds():
        if process.poll() is not None:
            raise AssertionError((folder / "board.log").read_text())
        try:
            return urlopen(address, timeout=5).status == 200
        except OSError:
            return False

    try:
        waited(responds, PATIENCE)
        yield address
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.fixture
def shots(tmp_path):
    folder = Path(os.environ.get("SEPO_SHOTS", tmp_path / "shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.host
def test_a_visitor_trains_with_sepo(world, tmp_path, shots):
    require_browser()
    data = tiny.save_pairs(tmp_path / "data")
    info = json.loads((data / "dataset_info.json").read_text())
    (data / "dataset_info.json").write_text(json.dumps({**info, HOSTILE: info["tiny_pairs"]}))
    with served(tmp_path) as address, open_browser(tmp_path / "profile", width=1400) as browser:
        browser.open(address)
        page = BoardPage(browser)
        page.choose("Model name", "Custom")
        page.write("Model path", str(world / "policy"))
        page.choose("Chat template", "chatml")
        page.write("Data dir", str(data))
        assert page.options("Stage")[4:8] == list(LABELS.values())
        page.choose("Stage", "SePO")
        keys = json.loads(waited(lambda: "oracle" in page.value("Extra arguments") and page.value("Extra arguments")))
        assert keys["optim"] == "adamw_torch"
        browser.screenshot(shots / "sepo.png")
        page.offers("Dataset", ["tiny_pairs", HOSTILE])
        page.choose("Dataset", "tiny_pairs")
        page.choose("Dataset", HOSTILE)
        page.choose("Compute type", "fp32")
        page.press("Preview command")
        assert "sepo: error: no oracle is named" in waited(page.code)[0]
        keys |= {"oracle_model": str(world / "oracle"), "oracle_base_model": str(world / "base")}
        keys |= {"max_steps": 2, "use_cpu": True, "token_scores_dir": "scores", "preprocessing_num_workers": 1}
        page.write("Extra arguments", json.dumps(keys))
        page.write("Logging steps", "1")
        page.press("Preview command")
        waited(lambda: page.code()[0].startswith("sepo train"))
        browser.screenshot(shots / "preview.png")
        _, _, *words = shlex.split(page.code()[0].replace("\\\n", " "))
        _, settings = check_recipe(words)
        assert settings.stage == "sepo"
        page.press("Start")
        waited(lambda: "Training completed." in page.text() and "Finished." in page.text(), PATIENCE)
        browser.screenshot(shots / "finished.png")
        assert waited(lambda: browser.find_all('img[alt$="plot visualising provided data"]'))
        assert "pwned" not in browser.run("return document.title")
        assert not browser.find_all("img[src=x]")
        assert not [line for line in browser.console() if "Uncaught" in line]
    (run,) = (tmp_path / "saves" / "Custom" / "lora").iterdir()
    assert words[words.index("--output_dir") + 1] == str(run.relative_to(tmp_path))
    progress = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text().splitlines()]
    shown = [(line["current_steps"], line["total_steps"], "loss" in line) for line in progress]
    assert shown[0] == (32, 48, False)  # scoring, by shards
    assert [entry for entry in shown if entry[2]] == [(1, 2, True), (2, 2, True)]
    assert (run / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "pwned").exists()
