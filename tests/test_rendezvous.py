"""The network interface at which training workers reach each other."""

from __future__ import annotations

import os
import socket

import pytest
import ray

from segray.rendezvous import INTERFACE, Rendezvous, interface_of


class Joining(Exception):
    """The workers would now be joined."""


class Group:
    """A worker group of this process."""

    def execute(self, function: object) -> None:
        """Call it as a worker would."""
        function()

    def get_resources_per_worker(self) -> dict:
        """What Ray asks for first when it joins workers."""
        raise Joining


def test_an_interface_is_found_by_its_address() -> None:
    names = [name for _, name in socket.if_nameindex()]
    assert interface_of("127.0.0.1") in names
    assert interface_of("192.0.2.255") is None
    assert interface_of("2001:db8::1") is None


@pytest.mark.parametrize(("given", "named"), [(None, interface_of("127.0.0.1")), ("eth7", "eth7")])
def test_workers_name_the_interface_of_their_node_before_they_are_joined(
    monkeypatch: pytest.MonkeyPatch, given: str | None, named: str
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")  # whatever the host's name leads to
    monkeypatch.setenv(INTERFACE, given or "")
    if given is None:
        monkeypatch.delenv(INTERFACE)
    config = Rendezvous()
    with pytest.raises(Joining):
        config.backend_cls().on_start(Group(), config)
    assert os.environ.pop(INTERFACE) == named
