"""The report in a real browser: Debian's chromium, driven by selenium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)], ids=["phone", "desktop"])
def test_report_is_whole_and_readable(
    browser: Any, judged: dict[str, Any], width: int, height: int
) -> None:
    page = Path(judged["report"])
    browser.get_log("browser"), browser.get_log("performance")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    asked = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    seen = browser.execute_script(
        """return {
            images: [...document.images].map(i => [i.complete, i.naturalWidth, i.alt.length]),
            wide: document.documentElement.scrollWidth, inner: window.innerWidth,
            size: parseFloat(getComputedStyle(document.body).fontSize),
            verdict: document.querySelector('.verdict').getBoundingClientRect().top,
            text: document.body.innerText}"""
    )
    assert len(seen["images"]) >= 5
    assert all(complete and size > 0 and alt > 0 for complete, size, alt in seen["images"])
    assert seen["wide"] <= seen["inner"]  # nothing to scroll sideways
    assert seen["size"] >= 16
    assert seen["verdict"] < height / 2  # verdict and flags come first
    assert f"{100 * judged['worst_case']:.1f}% worst case" in seen["text"]
    for flag in judged["flags"]:
        assert flag in seen["text"]
