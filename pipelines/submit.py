"""`fmoe submit`: any pipeline as a job on a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from fmoe.errors import PASSWORD, UserError
from pipelines.entry import application, mount
from pipelines.options import Address, Json
from pipelines.output import result, say, show


def submit(
    context: typer.Context,
    address: Address = None,
    follow: Annotated[bool, typer.Option(help="Show the output until the job ends.")] = False,
    pip: Annotated[
        bool, typer.Option(help="Have Ray install this environment's versions on the nodes.")
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable of the job; no secrets. Repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and what would be sent; send nothing.")
    ] = False,
    gpu_type: Annotated[str, typer.Option(help="Of the plan: a100, h100, l4, t4.")] = "a100",
    link: Annotated[str, typer.Option(help="Of the plan: between two workers.")] = "10gbit",
    json: Json = False,
) -> None:
    """Run a pipeline on a Ray cluster: the same command, with `submit` before it.

    The cluster gets this checkout's fmoe and the recipe file that the command names; paths other
    than that are the nodes' own. Nodes need the same package versions, or --pip.

    \b
    fmoe submit train cifar10 --workers 8 --storage s3://bucket/fmoe --follow
    fmoe submit train my-recipe.yaml --workers 1..4 --address http://127.0.0.1:8265
    fmoe submit evaluate models:/fmoe-cifar10@candidate --workers 4 --env NCCL_DEBUG=INFO
    fmoe submit tune cifar10 --workers-per-trial 4 --minutes 600
    fmoe submit --dry-run --gpu-type l4 train cifar10 --workers 8
    """
    arguments = list(context.args)
    metadata = check(arguments)
    variables = dict(map(variable, env or []))
    from fmoe.on_ray.jobs import Jobs, Order, passed_on
    from pipelines.jobs import followed

    refuse_passwords({**passed_on(), **variables})
    order = Order(arguments, variables, pip, metadata)
    if dry_run:
        from pipelines.planning import of_command, told_of_order

        with result(json) as answer:
            answer |= {
                "plan": of_command(arguments[0], parsed(arguments), gpu_type, link),
                "sent": order.told(),
            }
        say(json, *told_of_order(answer))
        return
    with result(json) as answer:
        jobs = Jobs.at(address)
        job_id = jobs.submit(order)
        if not json:
            show(f"job    {job_id} at {jobs.address}")
        job = followed(jobs, job_id) if follow else jobs.get(job_id)
        answer |= {"job_id": job_id, "status": job.status, "address": jobs.address}
    where = f" --address {address}" if address else ""
    say(json, f"status {job.status}", f"logs   fmoe jobs logs {job_id} --follow{where}")
    if follow and job.status != "SUCCEEDED":
        raise typer.Exit(1)


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The command's own options, as it would take them. Raises what it would raise."""
    from pipelines import as_jobs

    if not arguments or arguments[0] not in as_jobs.COMMANDS:
        named = arguments[0] if arguments else "nothing"
        raise UserError(f"submit {named}: expected one of {', '.join(as_jobs.COMMANDS)}")
    app = application()
    mount(app, arguments[0], as_jobs.COMMANDS[arguments[0]])
    commands: Any = typer.main.get_command(app)
    context = commands.commands[arguments[0]].make_context(
        f"fmoe {arguments[0]}", arguments[1:], parent=None
    )
    return dict(context.params)


def check(arguments: list[str]) -> dict[str, str]:
    """Refuses here what the job would refuse there; gives the job's metadata."""
    given = parsed(arguments)
    overrides = given.get("overrides") or ()
    if arguments[0] == "train":
        from fmoe import config

        config.load(given["recipe"], overrides)
        return {"recipe": config.recipe_name(given["recipe"])}
    if arguments[0] == "tune":
        return check_space(given["space"], overrides)
    return {}


def check_space(file: str, overrides: Sequence[str]) -> dict[str, str]:
    from fmoe import config
    from fmoe.tuning import search_space

    recipe = search_space.load(file, overrides).study.recipe
    if recipe not in config.recipes():
        raise UserError(
            f"{file}: recipe: {recipe} is a file, and a job takes along only those that the "
            "command names; write its changes of a packaged recipe under `set`"
        )
    return {"recipe": recipe, "space": file}


def variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise UserError(f"--env {text}: expected NAME=VALUE")
    if re.search(r"SECRET|PASSWORD|TOKEN|CREDENTIAL|PRIVATE|API_?KEY", name.upper()):
        raise UserError(
            f"--env {name}: whoever sees the job would see it; give secrets to the nodes instead"
        )
    return name, value


def refuse_passwords(variables: Mapping[str, str]) -> None:
    """Raises `UserError` for a variable of the job with a password in its URI."""
    for name, value in variables.items():
        if PASSWORD.search(value):
            raise UserError(
                f"{name}: holds a password, and whoever sees the job would see it; leave it out of "
                "the URI and give the nodes MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("submit", submit)
