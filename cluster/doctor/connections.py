"""Interfaces, host name and ports."""

from __future__ import annotations

import socket

from cluster.doctor.check import Check
from cluster.network import LOOPBACK, free_port, interfaces, port_is_free

SERVICES = {6006: "TensorBoard: ./launch.sh tensorboard --port N", 8265: "Ray dashboard for submit: --address of the cluster that holds it"}


def connection_checks() -> list[Check]:
    """All findings of this file."""
    return [check_interfaces(interfaces()), check_host_name(), check_meeting_port(), *(check_service_port(port) for port in SERVICES)]


def check_interfaces(known: dict[str, list[str]]) -> Check:
    """Workers of one machine meet on loopback; those of several on the interface that carries the node's address."""
    shown = ", ".join(f"{name} {addresses[0]}" for name, addresses in known.items() if addresses)
    if any(LOOPBACK in addresses for addresses in known.values()):
        return Check("interfaces", "ok", shown)
    return Check("interfaces", "fault", f"none has {LOOPBACK} (found {shown or 'none'})", "ip link set lo up")


def check_host_name() -> Check:
    """Some libraries look their own name up when they start."""
    name = socket.gethostname()
    try:
        return Check("host name", "ok", f"{name} is {socket.gethostbyname(name)}")
    except OSError:
        return Check("host name", "warning", f"{name} cannot be looked up", f"add the line '127.0.1.1 {name}' to /etc/hosts")


def check_meeting_port() -> Check:
    """Whether a worker can listen on loopback at all."""
    try:
        return Check("meeting port", "ok", f"{LOOPBACK}:{free_port()} can be listened on")
    except OSError as fault:
        found = f"no port can be opened on {LOOPBACK}: {fault.strerror}"
        return Check("meeting port", "fault", found, "allow local TCP sockets (sandbox or firewall)")


def check_service_port(port: int) -> Check:
    """The default ports of what a person looks at."""
    if port_is_free(port):
        return Check(f"port {port}", "ok", "free")
    return Check(f"port {port}", "warning", "taken", SERVICES[port])
