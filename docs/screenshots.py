"""The pictures of MLflow's pages, taken in a browser: Debian's chromium, driven by selenium.

    FMOE_HOME=… fmoe train digits && FMOE_HOME=… python docs/screenshots.py

of the newest run in the store of FMOE_HOME. A picture is a function and its name in `PICTURES`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from fmoe import tracking
from fmoe.tracking import experiments, own

HERE = Path(__file__).parent
COLOURS = 128
"""Of a picture, which are few hundred kilobytes otherwise."""
PATIENCE_SECONDS = 60.0


def main() -> None:
    with served() as address, browser() as driver:
        for name, take in PICTURES.items():
            take(driver, address)
            time.sleep(1)
            path = HERE / f"{name}.png"
            driver.save_screenshot(str(path))
            smaller(path)
            print(f"{path}: {path.stat().st_size:,} bytes")


def run_page(driver: Any, address: str) -> None:
    """The page of the newest run: its description open."""
    sized(driver, 1500, 1250)
    driver.get(f"{address}{newest_run()}")
    waited(driver, "//*[text()='Description']")
    for button in driver.find_elements("xpath", "//*[text()='Show more']"):
        button.click()


PICTURES: dict[str, Callable[[Any, str], None]] = {"mlflow-run": run_page}


def newest_run() -> str:
    """Its place on a server."""
    store = tracking.client()
    experiment = experiments.find(store)
    assert experiment is not None, "no run in this store: `fmoe train digits` makes one"
    (run,) = store.search_runs([experiment.experiment_id], max_results=1)
    number, run_id = experiment.experiment_id, run.info.run_id
    return f"/#/experiments/{number}/runs/{run_id}?{experiments.VIEW}"


def waited(driver: Any, path: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not driver.find_elements("xpath", path):
        assert time.monotonic() < deadline, f"{driver.current_url}: has no {path}"
        time.sleep(0.5)
    time.sleep(2)


def sized(driver: Any, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def smaller(path: Path) -> None:
    image = Image.open(path).convert("RGB").quantize(COLOURS)
    image.save(path, optimize=True)


@contextlib.contextmanager
def served() -> Iterator[str]:
    """MLflow's own server on the store of FMOE_HOME, on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "1", "--backend-store-uri", tracking.store_uri()),
            *("--artifacts-destination", own.artifacts()),
        ],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=2).read()  # noqa: S310
                break
            assert server.poll() is None, "MLflow's server has ended"
            assert time.monotonic() < deadline, "MLflow's server does not answer"
            time.sleep(0.5)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    # MLflow opens a panel of its assistant when a browser comes for the first time
    seen = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": seen})
    yield driver
    driver.quit()


if __name__ == "__main__":
    main()
