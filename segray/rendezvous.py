"""The network address at which training workers on CPUs reach each other: the one by which Ray knows their node.

gloo takes the address of the host's name. Debian and Ubuntu give that a loopback address in /etc/hosts, at which no
worker of another node answers.
"""

from __future__ import annotations

import os

import ray
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"  # read by torch; one that the cluster's owner has set is kept


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
    """The name of this host's interface with that address, if there is one."""
    import psutil  # comes with Ray, and can be imported once Ray is

    interfaces = psutil.net_if_addrs().items()
    return next((name for name, found in interfaces if any(one.address == address for one in found)), None)


def _name_interface() -> None:
    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault(INTERFACE, name)
