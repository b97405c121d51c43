"""Interfaces and ports of this machine."""

from __future__ import annotations

import socket

import pytest

from cluster.errors import ClusterError
from cluster.network import LOOPBACK, claim_port, free_port, interface_of, interfaces, port_is_free


def test_loopback_interface_is_found() -> None:
    name = interface_of(LOOPBACK)
    assert LOOPBACK in interfaces()[name]
    assert name in {name for _, name in socket.if_nameindex()}


def test_every_address_leads_to_its_interface() -> None:
    for name, addresses in interfaces().items():
        for address in addresses:
            assert address in interfaces()[interface_of(address)], name


def test_address_of_no_interface() -> None:
    with pytest.raises(ClusterError, match=r"192\.0\.2\.253.*--node-ip-address"):
        interface_of("192.0.2.253")  # of the block that RFC 5737 keeps for documentation


def test_ports() -> None:
    port = free_port()
    with socket.socket() as server:
        server.bind((LOOPBACK, port))
        server.listen()
        assert not port_is_free(port)
        with pytest.raises(ClusterError, match=rf"port {port} .* is taken; \d+ is free: --port \d+"):
            claim_port(port, "--port")
    assert claim_port(port, "--port") == port


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_number_that_is_no_port(port: int) -> None:
    with pytest.raises(ClusterError, match=f"--port is {port}; it must be from 1 to 65535"):
        claim_port(port, "--port")
