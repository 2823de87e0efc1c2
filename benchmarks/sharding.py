r"""Experts shared out among two workers against images shared out, over links of several speeds.

    python -m benchmarks.sharding                  # as root: hosts are network namespaces
    python -m benchmarks.sharding --links 100mbit --cases whole-9-16 --batches 32

Two processes of one thread, each on a host of its own, make joint training steps with PGD-10 on
random images of CIFAR-10's shape, in bfloat16: `data` by DDP, `expert` with `parallel.expert` 2,
and the same with the images' gradients in bfloat16. Seconds are the median of the steps, bytes what
the first host's network card has sent a step. Result: benchmarks/results/sharding.json.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import measure
from benchmarks.step import on_noise
from fmoe import assembly, config
from fmoe.attacks import PGD
from fmoe.numerics.shared_experts import SharedExperts
from fmoe.numerics.worker import Worker
from tests.cluster.network import Host, Network, why_not

STEPS = 10  # of PGD
CASES = {
    **{f"whole-{count}-{width}": (count, width) for width in (16, 64) for count in (3, 9, 16)},
    "branched-9-24": (9, None),
}
"""Experts and width; all on the patch stem, and one step of two is timed of the wide ones."""
WAYS = {"data": (1, None), "expert": (2, None), "expert, bfloat16": (2, torch.bfloat16)}
"""Workers that share the experts, and the type in which images' gradients travel."""
SENT = Path("/sys/class/net/eth0/statistics/tx_bytes")


def settings(case: str, batch: int) -> config.Config:
    experts, width = CASES[case]
    if width is None:
        overrides = [f"joint.batch_size={batch}", "joint.sizes=[]"]
        return config.load("cifar10-small-branched", overrides)
    return config.load(
        "cifar10-small",
        [
            f"joint.batch_size={batch}",
            f"experts.backbone={{kind: resnet18, width: {width}, stem: patch}}",
            f"experts.roles={{pgd: {{count: {experts}, attack: {{kind: pgd}}}}}}",
        ],
    )


def measured(case: str, batch: int, way: str, rank: int, rounds: int) -> dict[str, float]:
    """Seconds and bytes of a step; the first one is not counted."""
    chosen, (peers, sent) = settings(case, batch), WAYS[way]
    worker = Worker.of_mesh(rank, 2, peers, torch.device("cpu"))
    model = assembly.seeded_mixture(chosen)
    model.hold(SharedExperts(worker.peers, sent))
    attack = PGD(eps=8 / 255, step_size=2 / 255, steps=STEPS)
    made = on_noise(model, chosen, attack, "bfloat16", 2 * batch, worker=worker)
    x, y = next(made.batches.epoch(0))
    seconds, sizes = [], []
    for index in range(rounds + 1):
        dist.barrier()
        begin, before = time.perf_counter(), int(SENT.read_text())
        made.step(index % made.steps, x, y)
        dist.barrier()
        seconds.append(time.perf_counter() - begin)
        sizes.append(int(SENT.read_text()) - before)
    return {
        "seconds": statistics.median(seconds[1:]),
        "megabytes": statistics.median(sizes[1:]) / 1e6,
    }


def work(given: argparse.Namespace) -> None:
    """One of the two processes: all cases, one after another."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{given.head}:29500",
        rank=given.rank,
        world_size=2,
        timeout=datetime.timedelta(minutes=20),
    )
    found = []
    for case, batch, way in itertools.product(
        given.cases.split(","), map(int, given.batches.split(",")), WAYS
    ):
        wide = CASES[case][1] == 64
        one = measured(case, batch, way, given.rank, 2 if wide else given.rounds)
        found.append({"case": case, "batch": batch, "way": way, **one})
        if given.rank == 0:
            print(json.dumps({"link": given.links, **found[-1]}), flush=True)
    if given.rank == 0:
        given.out.write_text(json.dumps(found))
    dist.destroy_process_group()


def over(link: str, hosts: list[Host], given: argparse.Namespace, folder: Path) -> list[Any]:
    """What two processes find over a link of this speed."""
    for host in hosts:
        if link != "unlimited":
            host.limit(link)
    out = folder / f"{link}.json"
    passed = "--cases", given.cases, "--batches", given.batches, "--rounds", str(given.rounds)
    of = "--links", link, "--head", hosts[0].address, "--out", str(out)
    running = [
        host.start(
            *("taskset", "-c", str(rank), sys.executable, "-m", "benchmarks.sharding"),
            *(*passed, *of, "--rank", str(rank)),
            env={"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"},
            log=folder / f"{link}-{rank}.log",
        )
        for rank, host in enumerate(hosts)
    ]
    if any(process.wait() for process in running):
        raise SystemExit((folder / f"{link}-0.log").read_text())
    print((folder / f"{link}-0.log").read_text(), end="", flush=True)
    return [{"link": link, **one} for one in json.loads(out.read_text())]


def compared(rows: list[Any]) -> list[Any]:
    """Throughput of sharing experts out, in units of sharing images out."""
    by_way = {(r["link"], r["case"], r["batch"], r["way"]): r for r in rows}
    return [
        {
            **{name: round(value, 4) if isinstance(value, float) else value
               for name, value in row.items()},
            "throughput": round(by_way[*key, "data"]["seconds"] / row["seconds"], 3),
        }
        for row in rows
        for key in [(row["link"], row["case"], row["batch"])]
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--links", default="100mbit,1gbit,unlimited")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--batches", default="32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, help="Of the two processes: our own.")
    parser.add_argument("--head", help="Our own.")
    parser.add_argument("--out", type=Path, help="Our own.")
    given = parser.parse_args()
    if given.rank is not None:
        work(given)
        return
    if reason := why_not():
        raise SystemExit(reason)
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for link in given.links.split(","):
            with Network() as network:
                hosts = [network.host(name) for name in ("one", "other")]
                rows += over(link, hosts, given, Path(folder))
    known = measure.path("sharding", "json")
    kept = json.loads(known.read_text())["rows"] if known.exists() else []
    fresh = compared(rows)
    same = {(r["link"], r["case"], r["batch"]) for r in fresh}
    others = [r for r in kept if (r["link"], r["case"], r["batch"]) not in same]
    measure.write("sharding", {"attack_steps": STEPS, "rows": others + fresh})


if __name__ == "__main__":
    main()
