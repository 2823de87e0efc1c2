"""Which Ray cluster is meant, and whether it can be used, asked before Ray itself connects.

Ray tries an address where nothing answers for a quarter of an hour. The head is asked one question
here, over the connection that Ray would use, with a deadline.
"""

from __future__ import annotations

import os

import grpc
import ray
from ray.exceptions import AuthenticationError

from fmoe.errors import UserError, first_line
from fmoe.on_ray import private

ANSWER_SECONDS = 8.0  # for the head's answer; a busy one takes less than one
UNSET = "or unset RAY_ADDRESS to use this machine alone"


def cluster_address() -> str | None:
    """RAY_ADDRESS, or None where Ray is to be started on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return address if address not in ("", "local") else None


def check() -> None:
    """Before a command reads or writes anything: whether the cluster that RAY_ADDRESS names can be
    reached. Raises `UserError`."""
    if address := cluster_address():
        reach(address)


def reach(address: str) -> str:
    """host:port of the cluster's head, which has answered, as has a node on this machine.

    Raises `UserError` within `ANSWER_SECONDS` each where none answers, or one that we cannot work
    with.
    """
    head = _resolved(address)
    named = f"RAY_ADDRESS={address}" + ("" if head == address else f" ({head})")
    try:
        with private.channel(head) as channel:
            asked = private.Head(channel, ANSWER_SECONDS)
            version = asked.version()
            if version != ray.__version__:
                raise UserError(
                    f"{named}: the cluster runs Ray {version} and this Python has "
                    f"{ray.__version__}: install the cluster's (`pip install ray=={version}`), "
                    f"{UNSET}"
                )
            nodes = asked.nodes()
    except AuthenticationError:
        raise UserError(f"{named}: {_token()}") from None
    except grpc.RpcError as error:
        raise UserError(f"{named}: {_fault(error)}") from None
    here = private.nodes_of_this_machine()
    ours = [node.address for node in nodes if node.id in here]
    if not any(map(_ready, ours)):
        gist = f"its node on this machine ({ours[0]}) hangs" if ours else "this machine is no node"
        raise UserError(
            f"{named}: the cluster is there, but {gist}: start one (`ray start --address={head}`), "
            "or send the command to the cluster (`fmoe submit … --address http://HEAD:8265`)"
        )
    return head


def _ready(node: str) -> bool:
    """Ray's own code, which no signal interrupts, would wait for one that hangs."""
    with private.channel(node) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True


def _resolved(address: str) -> str:
    """host:port; `auto` is what runs on this machine, and localhost this machine's own address."""
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS={address}: expected HEAD:PORT, as `ray start --head` prints it; from "
            "outside of a cluster use `fmoe submit … --address http://HEAD:8265`"
        )
    host, _, port = address.rpartition(":")
    fits = port.isdecimal() and 0 < int(port) < 2**16 and host and not any(map(str.isspace, host))
    if address != "auto" and not fits:
        raise UserError(
            f"RAY_ADDRESS={address}: expected HEAD:PORT, such as 10.0.0.1:6379, or auto for the "
            "cluster of this machine"
        )
    try:
        return private.bootstrap_address(address)
    except ConnectionError:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray runs on this machine: `ray start --head` starts one, "
            f"{UNSET}"
        ) from None


def _fault(error: grpc.RpcError) -> str:
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return _token()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        gist = f"no answer in {ANSWER_SECONDS:.0f} seconds"
    elif code == grpc.StatusCode.UNAVAILABLE and "HTTP" not in details:
        gist = details.rpartition("last error: ")[2].rpartition("remote host: ")[2]
    else:
        gist = f"what answers is no head of a cluster: {details or code.name}"
    return (
        f"no Ray cluster can be reached ({first_line(Exception(gist))}): is it up, is this the "
        f"head's address and port (6379, not the dashboard's), and no firewall between? Mend it, "
        f"{UNSET}"
    )


def _token() -> str:
    return (
        "the cluster asks for another token: set RAY_AUTH_MODE=token and copy the head's "
        "~/.ray/auth_token here, mode 0600, or set RAY_AUTH_TOKEN_PATH"
    )
