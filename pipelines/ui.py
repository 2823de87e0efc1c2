"""`fmoe ui`: MLflow's own pages on the store that fmoe records in."""

from __future__ import annotations

from pipelines.options import Port


def ui(port: Port = 5000) -> None:
    """Serve MLflow's pages of runs and models on this machine, until Ctrl-C.

    On 127.0.0.1 alone: there is no password. Where MLFLOW_TRACKING_URI names a server, that has the
    pages, and its address is printed.

    \b
    fmoe ui
    fmoe ui --port 5001
    """
    from pipelines.serving import pages_of_runs

    pages_of_runs(port)


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("ui", ui)
