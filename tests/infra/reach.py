"""Who may talk to whom under Kubernetes' network policies, as the API's reference says; podSelectors and ports only.

A pod that a policy selects for a direction may do there what some such policy allows, and nothing else; a pod that none
selects may do anything. A connection needs both ends' consent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Policies = Sequence[Mapping[str, Any]]
OPERATORS = {
    "Exists": lambda labels, key, _: key in labels,
    "In": lambda labels, key, values: labels.get(key) in values,
}


@dataclass(frozen=True)
class Pod:
    """A pod, or whatever else is at one end: `labels` and those of its namespace; no namespace is outside."""

    labels: Mapping[str, str]
    namespace: str | None = "tessera"

    def chosen_by(self, selector: Mapping[str, Any]) -> bool:
        """Whether a label selector picks it; an empty one picks every pod."""
        return _matches(self.labels, selector)


def _matches(labels: Mapping[str, str], selector: Mapping[str, Any]) -> bool:
    wanted = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    rules = selector.get("matchExpressions", ())
    return wanted and all(OPERATORS[one["operator"]](labels, one["key"], one.get("values")) for one in rules)


def may_reach(policies: Policies, source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to `target` at `port`."""
    out = _allowed(policies, source, target, "Egress", port, protocol)
    return out and _allowed(policies, target, source, "Ingress", port, protocol)


def _allowed(policies: Policies, own: Pod, other: Pod, direction: str, port: int, protocol: str) -> bool:
    mine = [one for one in policies if own.namespace == one["metadata"]["namespace"]]
    about = [one["spec"] for one in mine if own.chosen_by(one["spec"]["podSelector"])]
    about = [spec for spec in about if direction in spec["policyTypes"]]
    rules = [(rule, own) for spec in about for rule in spec.get(direction.lower(), ())]
    return not about or any(_permits(rule, own, other, direction, port, protocol) for rule, own in rules)


def _permits(rule: Mapping[str, Any], own: Pod, other: Pod, direction: str, port: int, protocol: str) -> bool:
    ports, peers = rule.get("ports"), rule.get("from" if direction == "Ingress" else "to")
    open_port = ports is None or any(one["port"] == port and one["protocol"] == protocol for one in ports)
    return open_port and (peers is None or any(_is_peer(peer, own, other) for peer in peers))


def _is_peer(peer: Mapping[str, Any], own: Pod, other: Pod) -> bool:
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        namespace = {"kubernetes.io/metadata.name": other.namespace}
        return _matches(namespace, peer["namespaceSelector"]) and other.chosen_by(peer.get("podSelector", {}))
    return other.namespace == own.namespace and other.chosen_by(peer["podSelector"])
