"""A real headless Chromium for tests of pages: Debian's ``chromium`` and ``chromium-driver``, driven by selenium.

``make browser``, run as root, installs both. Without them a test fails with a message.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = "/usr/bin/chromium"
DRIVER = "/usr/bin/chromedriver"
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",
)
ACCESS = frozenset({"file", "data", "blob", "about"})
"""URL schemes that a page can load without a network."""


def require_browser() -> None:
    """Fail the calling test if no browser is installed."""
    missing = [path for path in (CHROMIUM, DRIVER) if shutil.which(path) is None]
    try:
        import selenium.webdriver  # noqa: F401
    except ImportError:
        missing.append("the Python package selenium")
    if missing:
        pytest.fail(f"no browser to test pages with: {', '.join(missing)} missing; run as root: make browser")


class Browser:
    """A Chromium with its console messages and requests.

    Args:
        driver: selenium's driver, for everything that this class does not have.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._console: list[str] = []
        self._requests: list[str] = []

    def open(self, page: str | Path) -> None:
        """Open a file or an address and wait until it is loaded; earlier log entries are dropped."""
        self._collect()
        self._console.clear()
        self._requests.clear()
        self.driver.get(page.absolute().as_uri() if isinstance(page, Path) else page)

    def resize(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """Lay out for a screen of this size in CSS pixels; a width below 600 emulates a phone with touch."""
        phone = width < 600
        screen = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})

    def prefer(self, scheme: str) -> None:
        """Set the preferred color scheme of the system to ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait for what the page does after an event, at most five seconds.

        Raises:
            TimeoutException: the condition stays false.
        """
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 5, poll_frequency=0.02).until(lambda _: condition())

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript and return the value of its ``return`` statement."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        """Return the first element of a CSS selector; raise if there is none."""
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[Any]:
        """Return all elements of a CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def press(self, *keys: str) -> None:
        """Send keys to the element with the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        """Write a PNG of the page in its current layout, including the part below the fold."""
        import base64

        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": whole})
        file.write_bytes(base64.b64decode(shot["data"]))

    def _collect(self) -> None:
        for entry in self.driver.get_log("browser"):
            if entry["level"] in ("SEVERE", "WARNING"):
                self._console.append(entry["message"])
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                parameters = event["params"]
                if not parameters.get("documentURL", "").startswith("chrome:"):  # The browser's own start page.
                    self._requests.append(parameters.get("request", parameters)["url"])

    def console(self) -> list[str]:
        """Return the console's errors and warnings since the page was opened, CSP violations included."""
        self._collect()
        return list(self._console)

    def requests(self) -> list[str]:
        """Return all URLs requested since the page was opened, the page's own first."""
        self._collect()
        return list(self._requests)

    def network_requests(self) -> list[str]:
        """Return the ``requests`` that need more than local files."""
        return [url for url in self.requests() if url.split(":", 1)[0] not in ACCESS]


@contextmanager
def open_browser(profile: Path, *, width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """Start a Chromium with its own profile and quit it afterwards.

    Args:
        profile: an empty or missing directory for the browser's profile.
        width: width of the window in CSS pixels.
        height: height of the window in CSS pixels.
    """
    require_browser()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With an explicit driver path, selenium does not try to download one.
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.set_page_load_timeout(60)
        yield Browser(driver)
    finally:
        driver.quit()
