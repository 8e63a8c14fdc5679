#!/usr/bin/env bash
# Make infra/constraints.txt anew: the versions that `make` installs, for every Python that pyproject.toml allows.
#
# Names, versions and markers only. A lock file would record where each package was downloaded from, which is nobody
# else's business and wrong behind another mirror. One file serves Python 3.11 to 3.13: where the newest versions need
# a newer Python (Zarr 3.1.6 is the last for 3.11), the lines carry markers.
#
# Usage: UV=/path/to/uv infra/update_constraints.sh
set -euo pipefail
cd "$(dirname "$0")/.."
UV="${UV:-uv}"
lowest=3.11
extras=(--extra dev --extra shapes --extra gpu --extra server)
held="$(mktemp)"
trap 'rm -f "$held"' EXIT

# graphene 3.4 names no highest python-dateutil, and the resolver would go back to it for the sake of a newer one.
echo 'graphene>=3.4.3' >"$held"

"$UV" pip compile pyproject.toml "${extras[@]}" --universal --python-version "$lowest" --upgrade \
  --constraint "$held" --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file infra/constraints.txt

for python in 3.11 3.12 3.13; do
  "$UV" pip compile pyproject.toml "${extras[@]}" --python-version "$python" \
    --constraint infra/constraints.txt --quiet --output-file /dev/null
  echo "resolves on Python $python"
done
