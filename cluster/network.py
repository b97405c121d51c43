"""Addresses, interfaces and ports of one node."""

from __future__ import annotations

import contextlib
import socket

from cluster.errors import ClusterError

LOOPBACK = "127.0.0.1"
LAST_PORT = 65535


def interfaces() -> dict[str, list[str]]:
    """Addresses (IPv4 and IPv6) by interface name."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    found = psutil.net_if_addrs()
    return {name: [entry.address.partition("%")[0] for entry in entries if entry.family in families] for name, entries in found.items()}


def interface_of(address: str) -> str:
    """Name of the interface that carries `address` (gloo and NCCL must be told; left alone they may meet on loopback).

    Raises:
        ClusterError: no interface carries it.
    """
    known = interfaces()
    for name, addresses in known.items():
        if address in addresses:
            return name
    raise ClusterError(
        f"no network interface of {socket.gethostname()} has the node address {address} (found {known}); "
        "start Ray on this node with --node-ip-address set to one of them"
    )


def free_port(address: str = LOOPBACK) -> int:
    """A TCP port that was free on `address` a moment ago."""
    return free_ports(address, 1)[0]


def free_ports(address: str, count: int) -> list[int]:
    """Different TCP ports that were free on `address` a moment ago."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((address, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def port_is_free(port: int, address: str = LOOPBACK) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def claim_port(port: int, option: str) -> int:
    """`port` if it is free.

    Raises:
        ClusterError: it is no port, or taken; then the message names the next free one and the option that sets it.
    """
    if not 1 <= port <= LAST_PORT:
        raise ClusterError(f"{option} is {port}; it must be from 1 to {LAST_PORT}")
    if port_is_free(port):
        return port
    other = next((candidate for candidate in range(port + 1, LAST_PORT + 1) if port_is_free(candidate)), None)
    hint = f"{other} is free: {option} {other}" if other else f"choose another with {option}"
    raise ClusterError(f"port {port} on {LOOPBACK} is taken; {hint}")
