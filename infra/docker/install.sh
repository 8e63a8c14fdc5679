#!/usr/bin/env bash
# Install tessera into a virtual environment of its own: the steps of the Dockerfile, one argument each, so that a layer
# holds what changes together. They run anywhere that has Python 3.11 to 3.13.
#
# Usage, from the repository root, in this order:
#   infra/docker/install.sh packages cpu|gpu /opt/tessera    what the constraints pin; changes with them alone
#   infra/docker/install.sh tessera /opt/tessera             the package itself: a second's work
#   infra/docker/install.sh check /opt/tessera               nothing is missing, and all of it imports
set -euo pipefail
cd "$(dirname "$0")/../.."
CONSTRAINTS=infra/constraints.txt

die() {
  echo "install.sh: $*" >&2
  exit 2
}

# The requirements of pyproject.toml and of one of its extras, one a line; tessera itself is not installed for them.
requirements() {
  "$1/bin/python" - "$2" <<'PYTHON'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *project["optional-dependencies"][sys.argv[1]], sep="\n")
PYTHON
}

packages() {
  local extra
  case "$1" in
    cpu) extra=server ;;
    gpu) extra=gpu ;;
    *) die "'$1' is no target: cpu or gpu" ;;
  esac
  "${PYTHON:-python3}" -m venv "$2"
  # Bytecode is written when a module is first imported: in a layer it would double the files. No pip cache is left.
  "$2/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
    --constraint "$CONSTRAINTS" --requirement <(requirements "$2" "$extra")
}

tessera() {
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile --no-deps \
    --no-build-isolation .
}

check() {
  "$1/bin/python" -m pip check --disable-pip-version-check
  local outside="$PWD"
  cd /
  "$1/bin/tessera" --version
  "$1/bin/ray" --version
  "$1/bin/mlflow" --version
  "$1/bin/python" -c 'import tessera.workflows.train, tessera.workflows.predict, tessera.model.training, cv2, imagecodecs'
  cd "$outside"
}

[ $# -ge 2 ] || die "usage: packages cpu|gpu FOLDER | tessera FOLDER | check FOLDER"
case "$1" in
  packages) packages "$2" "${3:?packages wants a target and a folder}" ;;
  tessera) tessera "$2" ;;
  check) check "$2" ;;
  *) die "'$1' is no step: packages, tessera or check" ;;
esac
