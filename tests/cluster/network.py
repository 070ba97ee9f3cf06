"""What NetworkPolicies let through."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from tests.cluster.manifests import Object, Pod, selects


@dataclass(frozen=True)
class Stranger:
    """A pod of another namespace, or an address outside of the cluster."""

    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    address: str = ""


def lets_through(
    policies: Sequence[Object], source: Pod | Stranger, target: Pod | Stranger, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the policies of one namespace let a connection be made; a stranger's own policies are not known."""
    return _allowed(policies, "Egress", source, target, port, protocol) and _allowed(
        policies, "Ingress", target, source, port, protocol
    )


def _allowed(
    policies: Sequence[Object], kind: str, here: Pod | Stranger, there: Pod | Stranger, port: int, protocol: str
) -> bool:
    if isinstance(here, Stranger):
        return True
    of_here = [one["spec"] for one in policies if selects(one["spec"]["podSelector"], here.labels)]
    of_here = [spec for spec in of_here if kind in spec["policyTypes"]]
    listener = here if kind == "Ingress" else there
    rules = [rule for spec in of_here for rule in spec.get(kind.lower(), [])]
    return not of_here or any(
        _names_peer(rule.get("from" if kind == "Ingress" else "to"), there)
        and _names_port(rule.get("ports"), port, protocol, listener)
        for rule in rules
    )


def _names_peer(peers: Sequence[Object] | None, there: Pod | Stranger) -> bool:
    return peers is None or any(_is_peer(peer, there) for peer in peers)


def _is_peer(peer: Object, there: Pod | Stranger) -> bool:
    if "ipBlock" in peer:
        if not isinstance(there, Stranger) or not there.address:
            return False
        address = ipaddress.ip_address(there.address)
        inside = address in ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return inside and not any(address in ipaddress.ip_network(one) for one in peer["ipBlock"].get("except", []))
    if isinstance(there, Pod):
        return "namespaceSelector" not in peer and selects(peer["podSelector"], there.labels)
    namespace = {"kubernetes.io/metadata.name": there.namespace}
    return (
        bool(there.namespace)
        and "namespaceSelector" in peer
        and selects(peer["namespaceSelector"], namespace)
        and selects(peer.get("podSelector", {}), dict(there.labels))
    )


def _names_port(ports: Sequence[Object] | None, port: int, protocol: str, listener: Pod | Stranger) -> bool:
    if ports is None:
        return True
    named = listener.ports if isinstance(listener, Pod) else {}
    return any(
        one.get("protocol", "TCP") == protocol and named.get(str(one["port"]), one["port"]) == port for one in ports
    )
