"""An evaluation as a page and files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from fmoe.errors import UserError, plain
from fmoe.evaluation import examples
from fmoe.evaluation.examples import Examples
from fmoe.evaluation.promotion import REPORT, VERDICTS
from fmoe.plots import report as report_plots
from fmoe.plots.run import png
from pipelines.judging.run import Judged
from pipelines.output import percent

PAGE, DPI = "index.html", 120


def template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: plain(value) if type(value) is str else value,  # not of Markup
    )
    environment.filters["percent"] = percent
    return environment.get_template(name)


def write_report(judged: Judged, answer: Mapping[str, Any], folder: Path) -> Path:
    """index.html (nothing outside of it is needed), evaluation.json, verdicts.parquet, plots/."""
    shown = examples.weakest(judged.evaluation, judged.model.network, judged.test)
    return write_page(judged, answer, shown, folder)


def write_page(
    judged: Judged, answer: Mapping[str, Any], shown: Examples | None, folder: Path
) -> Path:
    """The same with these images, or with none: nothing is attacked then."""
    evaluation = judged.evaluation
    charts = report_plots.charts(
        evaluation, answer, shown, judged.data.facts.classes, judged.known_classes
    )
    skipped: dict[str, list[str]] = {}
    for name, reason in evaluation.skipped.items():
        skipped.setdefault(reason, []).append(name)
    page = template("report.html").render(
        title=f"{judged.name}: robustness",
        answer=answer,
        norm=evaluation.settings.threat.symbol,
        accuracies=list(evaluation.figures.items()),
        figures=written(charts, folder),
        skipped=skipped,
        facts=facts(answer),
    )
    write(folder / PAGE, page.encode())
    write_verdicts(judged, answer, folder)
    return folder / PAGE


def write_verdicts(judged: Judged, answer: Mapping[str, Any], folder: Path) -> None:
    """What another evaluation can be compared with, image by image."""
    write(folder / REPORT, (json.dumps(answer, indent=1) + "\n").encode())
    buffer = io.BytesIO()
    pq.write_table(judged.evaluation.table(), buffer)
    write(folder / VERDICTS, buffer.getvalue())


def facts(answer: Mapping[str, Any]) -> dict[str, str]:
    versions = {f"version of {key}": value for key, value in answer["versions"].items()}
    return {
        "model": answer["model"],
        "sha256 of its weights": answer["sha256"],
        "data": f"{answer['data']}, {answer['images']} of {answer['test_images']} test images",
        "sha256 of the test images": answer["test_digest"],
        "sha256 of the data": answer["digest"] or "training images not read",
        "test images among the training ones": leaks(answer["leaked"]),
        "code revision": answer["revision"],
        "evaluated at": answer["at"],
        "seconds": f"{answer['seconds']:.0f}",
        **versions,
    }


def leaks(count: int | None) -> str:
    return "not looked for" if count is None else str(count or "none")


def written(charts: Mapping[str, tuple[Figure, str]], folder: Path) -> list[dict[str, Any]]:
    """Each figure as plots/NAME.png and as the page wants it."""
    pages = []
    for name, (figure, caption) in charts.items():
        picture = png(figure, DPI)
        write(folder / "plots" / f"{name}.png", picture)
        width, height = (round(side * DPI) for side in figure.get_size_inches())
        encoded = base64.b64encode(picture).decode()
        pages.append({"png": encoded, "caption": caption, "width": width, "height": height})
    return pages


def write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"--report {path.parent}: cannot be written ({error.strerror})") from None
