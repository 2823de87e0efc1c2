"""`fmoe runs`: MLflow runs whose process has gone."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.options import Address, Json
from pipelines.output import result, say

app: typer.Typer = typer.Typer(help="MLflow runs.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """MLflow runs of fmoe."""


@app.command()
def reap(
    address: Address = None,
    force: Annotated[
        bool, typer.Option(help="Also runs of which nobody can tell whether they live.")
    ] = False,
    json: Json = False,
) -> None:
    """End as KILLED the runs that are RUNNING in MLflow though their job or process has gone.

    A run of this machine is judged by its process, a submitted one by its job on the cluster at
    --address. Resuming a reaped run is fine: it goes on where it was.

    \b
    fmoe runs reap
    fmoe runs reap --address http://127.0.0.1:8265
    """
    from fmoe import tracking
    from pipelines.liveness import Liveness

    with result(json) as answer:
        tracking.writing()  # is refused before any run is judged
        liveness = Liveness(address)
        reaped: list[str] = []
        alive: list[str] = []
        unknown: list[str] = []
        for run in tracking.running():
            gone, why = liveness.gone(run)
            if gone or (gone is None and force):
                tracking.end(run, "KILLED")
                reaped.append(run.id)
            else:
                (unknown if gone is None else alive).append(run.id)
            verb = "reaped" if run.id in reaped else "left"
            say(json, f"{verb:<6} {run.id}  {run.name}  {why}")
        answer |= {"reaped": reaped, "alive": alive, "unknown": unknown}
    say(json, f"{len(reaped)} reaped, {len(alive)} alive, {len(unknown)} unknown")


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("runs", app)
