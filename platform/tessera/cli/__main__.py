"""`python -m tessera.cli`: the same as the `tessera` command."""

from tessera.cli.main import entry

entry()
