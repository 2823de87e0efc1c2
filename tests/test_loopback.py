"""Which interface is loopback: as Linux, macOS and a host without one name theirs."""

from __future__ import annotations

import socket
from collections import namedtuple

import psutil
import pytest

from fmoe.on_ray import loopback, session

Address = namedtuple("Address", "family address netmask broadcast ptp")


def v4(address: str) -> Address:
    return Address(socket.AF_INET, address, "255.0.0.0", None, None)


def v6(address: str) -> Address:
    return Address(socket.AF_INET6, address, None, None, None)


LINUX = {"eth0": [v4("10.0.0.7")], "lo": [v4("127.0.0.1"), v6("::1")]}
MACOS = {
    "lo0": [v6("::1"), v4("127.0.0.1"), v6("fe80::1%lo0")],
    "en0": [v6("fe80::1c2b%en0"), v4("192.168.0.4")],
    "utun0": [v6("fe80::9a1f%utun0")],
}
WITHOUT = {"eth0": [v4("10.0.0.7")]}


@pytest.mark.parametrize(
    ("addresses", "name"),
    [(LINUX, "lo"), (MACOS, "lo0"), (WITHOUT, None)],
    ids=["Linux", "macOS", "no loopback"],
)
def test_gloo_is_told_what_carries_127_0_0_1(
    addresses: dict[str, list[Address]], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    assert loopback.interface() == name
    assert session.environment(None).get("GLOO_SOCKET_IFNAME") == name
    assert "GLOO_SOCKET_IFNAME" not in session.environment("10.0.0.1:6379")


def test_it_is_an_interface_of_this_machine() -> None:
    assert loopback.interface() in {name for _, name in socket.if_nameindex()}
