"""Which code runs, told by its files alone: git's own name of the package's folder, computed without git.

A job's code travels as a plain copy, and an image holds an installed one: neither has a checkout that would tell its
commit. The name of a tree does not need one. `git rev-parse COMMIT:platform/tessera` gives a commit's.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

# What running and installing leave among the sources.
_NOT_SOURCE = ("__pycache__", ".pyc", ".pyo", ".egg-info")


def tree_name(folder: Path) -> str:
    """Git's object name (SHA-1) of a folder as it would be committed; links and executables count as plain files."""
    return _tree(folder).hex()


def _tree(folder: Path) -> bytes:
    entries = []
    for path in folder.iterdir():
        if path.name.endswith(_NOT_SOURCE):
            continue
        if path.is_dir():
            # A folder's name is compared as if it ended in a slash; one without files is none to git.
            if (inner := _tree(path)) != _object(b"tree", b""):
                entries.append((f"{path.name}/", b"40000 " + path.name.encode(), inner))
        else:
            entries.append((path.name, b"100644 " + path.name.encode(), _object(b"blob", path.read_bytes())))
    return _object(b"tree", b"".join(name + b"\0" + digest for _, name, digest in sorted(entries)))


def _object(kind: bytes, content: bytes) -> bytes:
    return hashlib.sha1(kind + b" %d\0" % len(content) + content, usedforsecurity=False).digest()
