#!/usr/bin/env bash
# Print the secrets that the manifests want: random passwords, and the object store's credentials out of the environment.
# Nothing is written to a file; made again, the passwords are others, which a database that has one does not know.
#
# Usage: AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... AWS_REGION=... [AWS_ENDPOINT_URL=...] \
#          infra/kubernetes/make_secrets.sh | kubectl apply -f -      # after base/namespace.yaml
set -euo pipefail

: "${AWS_ACCESS_KEY_ID:?is not set: the key that may read and write the bucket}"
: "${AWS_SECRET_ACCESS_KEY:?is not set: the secret of that key}"
: "${AWS_REGION:?is not set: where the bucket lies, for example us-east-1}"

password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# Base64, so that no character of a secret means anything in YAML.
entry() { printf '  %s: %s\n' "$1" "$(printf %s "$2" | base64 | tr -d '\n')"; }

secret() {
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: tessera\ntype: Opaque\ndata:\n' "$1"
}

secret object-store
for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION AWS_ENDPOINT_URL AWS_SESSION_TOKEN; do
  if [ -n "${!name:-}" ]; then entry "$name" "${!name}"; fi
done
# The stores' clients want to be told that plain HTTP is meant.
case "${AWS_ENDPOINT_URL:-}" in http://*) entry AWS_ALLOW_HTTP "true" ;; esac
secret postgres
entry POSTGRES_USER mlflow
entry POSTGRES_PASSWORD "$(password)"
entry POSTGRES_DB mlflow
secret redis
entry REDIS_PASSWORD "$(password)"
