"""A study's figures: parallel coordinates, importance, the front, the best so far."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from matplotlib.figure import Figure

from fmoe.tuning.optuna_trials import as_optuna
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Trial, best_so_far, pareto

TRIALS_FOR_IMPORTANCE = 4  # trials from which on importances mean anything at all


def charts(space: Space, trials: Sequence[Trial]) -> dict[str, Figure]:
    """By name; those for which the study has too few trials are left out."""
    (name, direction), *others = space.study.metrics.items()
    charts = {"best_so_far": course(trials, name, direction)}
    study = as_optuna(space, trials)
    if others:
        charts["pareto_front"] = front(space, trials)
    if len(study.trials) < 2:
        return charts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plots = optuna.visualization.matplotlib
        first: dict[str, Any] = {"target": lambda trial: trial.values[0], "target_name": name}
        charts["parallel_coordinates"] = _whole(plots.plot_parallel_coordinate(study, **first))
        varied = any(len({str(t.params.get(p)) for t in study.trials}) > 1
                     for p in study.trials[0].params)  # fmt: skip
        if (
            len(study.trials) >= TRIALS_FOR_IMPORTANCE
            and varied
            and len({t.values[0] for t in study.trials}) > 1
        ):
            charts["importance"] = _whole(
                plots.plot_param_importances(
                    study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0), **first
                )
            )
    return charts


def _whole(axes: object) -> Figure:
    figure = axes.figure  # type: ignore[attr-defined]
    figure.set_size_inches(11, 5)
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]


def course(trials: Sequence[Trial], name: str, direction: str) -> Figure:
    """Every report as a point, the best so far as a line, against the study's time."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for trial in trials:
        axes.plot(
            [epoch["at"] for epoch in trial.history],
            [epoch[name] for epoch in trial.history],
            color="tab:grey",
            alpha=0.5,
            marker=".",
            linewidth=0.7,
        )
    best = best_so_far(trials, name, "max" if direction == "max" else "min")
    if best:
        times, values = [at for at, _ in best], [value for _, value in best]
        end = max(epoch["at"] for trial in trials for epoch in trial.history)
        axes.step([*times, end], [*values, values[-1]], where="post", color="tab:blue")
    axes.set(xlabel="seconds", ylabel=name)
    return figure


def front(space: Space, trials: Sequence[Trial]) -> Figure:
    """The first two metrics of every trial at its best epoch; those that none beats are joined."""
    metrics = space.study.metrics
    names = list(metrics)[:2]
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    ours = {trial.number for trial in pareto(trials, metrics)}
    points = [(trial.number, trial.figures(metrics)) for trial in trials]
    line = []
    for number, figures in points:
        if figures is None:
            continue
        x, y = (figures[name] for name in names)
        axes.plot(x, y, marker="o", color="tab:red" if number in ours else "tab:grey")
        axes.annotate(str(number), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
        if number in ours:
            line.append((x, y))
    axes.plot(*zip(*sorted(line), strict=True), color="tab:red", linewidth=0.8)
    axes.set(xlabel=names[0], ylabel=names[1])
    return figure
