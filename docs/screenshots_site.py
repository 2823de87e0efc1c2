"""The picture of the site's first page, and pictures of any page at a phone's and a desk's width.

    make docs && python docs/screenshots_site.py                    # docs/site.png
    python docs/screenshots_site.py --to FOLDER index tour guides/cost

In Debian's chromium, by selenium.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
SITE = DOCS / "_build" / "html"
WIDTHS = {"phone": (390, 844), "desktop": (1440, 900)}
OVERFLOW = """return {wide: document.documentElement.scrollWidth, inner: window.innerWidth,
    out: [...document.querySelectorAll('article *')].filter(e => {
        const r = e.getBoundingClientRect();
        return r.right > window.innerWidth + 1 && !e.closest('.table-wrapper, pre, .highlight');
    }).slice(0, 5).map(e => e.tagName + ' ' + e.className + ' ' + e.innerText.slice(0, 40))}"""


@contextmanager
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:
        yield driver
    finally:
        driver.quit()


def look(driver: Any, page: str, size: tuple[int, int], *, dark: bool = False) -> None:
    """Opens a page of the site as a screen of this size shows it."""
    width, height = size
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get((SITE / f"{page}.html").as_uri())


def first_page(target: Path = DOCS / "site.png") -> None:
    """What stands on the site's first page, without what is below a desk's screen."""
    with browser() as driver:
        look(driver, "index", (1280, 800))
        driver.save_screenshot(str(target))


def pictures(names: list[str], folder: Path, *, dark: bool) -> None:
    """Each page whole, at both widths; says what is wider than the screen."""
    import base64

    folder.mkdir(parents=True, exist_ok=True)
    with browser() as driver:
        for name in names:
            for kind, size in WIDTHS.items():
                look(driver, name, size, dark=dark)
                shot = driver.execute_cdp_cmd(
                    "Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"}
                )
                file = folder / f"{name.replace('/', '-')}-{kind}{'-dark' if dark else ''}.png"
                file.write_bytes(base64.b64decode(shot["data"]))
                print(name, kind, driver.execute_script(OVERFLOW))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*")
    parser.add_argument("--to", type=Path)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    if given.to is None:
        first_page()
    else:
        pictures(given.pages or ["index"], given.to, dark=given.dark)


if __name__ == "__main__":
    main()
