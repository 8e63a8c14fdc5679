"""Wait until all nodes of an allocation have joined the Ray at RAY_ADDRESS; go on with fewer after ten minutes.

Usage: gather.py NODES
"""

from __future__ import annotations

import logging
import sys
import time

import ray

PATIENCE_S, PAUSE_S = 600.0, 2.0


def gather(wanted: int, patience_s: float = PATIENCE_S) -> int:
    """How many nodes there are: `wanted`, or fewer once the patience is over.

    Raises:
      ConnectionError: there is no Ray at RAY_ADDRESS in all that time.
    """
    give_up = time.monotonic() + patience_s
    while not ray.is_initialized():
        try:
            ray.init(address="auto", logging_level=logging.ERROR)
        except ConnectionError:
            if time.monotonic() > give_up:
                raise
            time.sleep(PAUSE_S)
    while (there := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < give_up:
        time.sleep(PAUSE_S)
    return there


if __name__ == "__main__":
    nodes = int(sys.argv[1])
    there = gather(nodes)
    print(f"{there} of {nodes} nodes have joined", file=sys.stderr)
