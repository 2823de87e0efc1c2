"""The pictures of the documentation, taken in a browser: Debian's chromium, driven by selenium.

    make docs && export FMOE_HOME=…
    fmoe train digits && fmoe evaluate models:/fmoe-digits@candidate --workers 2 --report page
    fmoe tune digits --trials 12
    python docs/screenshots.py --report page

Of the newest run and study in FMOE_HOME, of that report, and of the site's first page; or of those
those that are named. A picture is a function and its name in `PICTURES`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from optuna_dashboard import wsgi
from PIL import Image
from screenshots_site import browser, look

from fmoe import tracking
from fmoe.tracking import experiments, own, tags
from fmoe.tuning.optuna_trials import exported
from pipelines.serving import served
from pipelines.study.files import StudyFiles, studies

HERE = Path(__file__).parent
COLOURS = 128
"""Of a picture, which are few hundred kilobytes otherwise."""
PATIENCE_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="*", default=list(PICTURES))
    parser.add_argument("--report", type=Path, default=Path("page"), help="of `fmoe evaluate`")
    given = parser.parse_args()
    for name in given.pictures:
        with browser() as driver, PICTURES[name](driver, given.report):
            time.sleep(2)
            path = HERE / f"{name}.png"
            driver.save_screenshot(str(path))
            smaller(path)
            print(f"{path}: {path.stat().st_size:,} bytes")


@contextlib.contextmanager
def first_page(driver: Any, _: Path) -> Iterator[None]:
    """What stands on the site's first page, without what is below a desk's screen."""
    look(driver, "index", (1280, 800))
    yield


@contextlib.contextmanager
def report_page(driver: Any, report: Path) -> Iterator[None]:
    """The top of a report."""
    sized(driver, 1280, 1500)
    driver.get((report.resolve() / "index.html").as_uri())
    yield


@contextlib.contextmanager
def run_page(driver: Any, _: Path) -> Iterator[None]:
    """MLflow's page of the newest run that is no study's: its description open."""
    # MLflow opens a panel of its assistant when a browser comes for the first time
    seen = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": seen})
    with mlflow() as address:
        sized(driver, 1500, 1250)
        driver.get(f"{address}{newest_run()}")
        waited(driver, "//*[text()='Description']")
        for button in driver.find_elements("xpath", "//*[text()='Show more']"):
            button.click()
        yield


@contextlib.contextmanager
def study_page(driver: Any, _: Path) -> Iterator[None]:
    """Optuna's dashboard of the newest study, as `fmoe studies dashboard` serves it."""
    folders = sorted(
        studies(None), key=lambda folder: os.path.getmtime(f"{folder.local}/study.json")
    )
    study = StudyFiles(folders[-1])
    copy = exported(study.space, study.kept_trials, study.name)
    with served(wsgi(copy._storage), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sized(driver, 1500, 1250)
        driver.get(f"http://127.0.0.1:{server.server_port}/dashboard/studies/0")
        waited(driver, "//*[contains(text(), 'Importance')]")
        yield
        server.shutdown()


PICTURES: dict[str, Callable[[Any, Path], contextlib.AbstractContextManager[None]]] = {
    "site": first_page,
    "report": report_page,
    "mlflow-run": run_page,
    "study": study_page,
}


def newest_run() -> str:
    """Its place on a server."""
    store = tracking.client()
    experiment = experiments.find(store)
    assert experiment is not None, "no run in this store: `fmoe train digits` makes one"
    runs = store.search_runs([experiment.experiment_id])
    run = next(run for run in runs if tags.KIND not in run.data.tags)  # no study's
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
def mlflow() -> Iterator[str]:
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


if __name__ == "__main__":
    main()
