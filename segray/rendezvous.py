"""The network address at which training workers on CPUs reach each other: the one by which Ray knows their node.

gloo takes the address of the host's name. Debian and Ubuntu give that a loopback address in /etc/hosts, at which no
worker of another node answers.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

import ray
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"  # read by torch; one that the cluster's owner has set is kept
SIOCGIFADDR, ADDRESS = 0x8915, slice(20, 24)  # of Linux: asks for the IPv4 address of an interface, and its place


class _Backend(TorchConfig().backend_cls):
    def on_start(self, worker_group: object, backend_config: TorchConfig) -> None:
        worker_group.execute(_name_interface)
        super().on_start(worker_group, backend_config)


class Rendezvous(TorchConfig):
    """Ray's way to join workers, which first name their interface to gloo; NCCL finds its own."""

    @property
    def backend_cls(self) -> type:
        """What joins the workers."""
        return _Backend


def interface_of(address: str) -> str | None:
    """The name of this host's interface with that IPv4 address, if there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no such address
                continue
            if socket.inet_ntoa(answer[ADDRESS]) == address:
                return name
    return None


def _name_interface() -> None:
    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault(INTERFACE, name)
