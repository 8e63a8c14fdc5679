#!/usr/bin/env bash
# Whether a container does its work: where Ray was started its node must be alive, elsewhere tessera must run.
set -euo pipefail
if grep -qsx raylet /proc/[0-9]*/comm; then
  wget -q -T 5 -O- "http://127.0.0.1:${RAY_AGENT_PORT:-52365}/api/local_raylet_healthz" | grep -q success
else
  tessera --version >/dev/null
fi
