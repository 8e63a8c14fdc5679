"""A small web server for one scene: its page, pictures of its sections, and the files of its volumes, to be read only.

    /                            the page
    /scene.json                  what there is to see
    /section/KIND.png?z=&zoom=   a picture of a section
    /volumes/KIND/...            the volume's own files, whole or in ranges, for viewers

Who may read: programs on this machine, its own page, and pages of the one viewer named in the settings. Any other page
that the user's browser has open is refused by what it says of itself (`Origin`), and one that claims to be this host
under a name of its own (DNS rebinding) by the name it asks for (`Host`).
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tessera.storage.ranges import StoredFile, file_below, opened
from tessera.workflows.scene import Scene
from tessera.workflows.section_views import NotShownError, View, picture_of

_log = logging.getLogger(__name__)

_PAGE = {"": "index.html", "view.js": "view.js", "view.css": "view.css"}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "json": "application/json"}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_METHODS = "GET, HEAD, OPTIONS"
# The page draws three layers at a time; each picture may decode tens of MiB.
_PICTURES_AT_ONCE = 3
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:"


class ViewServer(ThreadingHTTPServer):
    """Serves one scene; `serve_forever` until `shutdown`.

    Attributes:
      scene: what is shown.
      told: further entries of `scene.json`.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, scene: Scene, viewer_origin: str) -> None:
        """Listen, without answering yet.

        Raises:
          OSError: nothing can listen there.
        """
        self.scene, self.told = scene, dict[str, Any]()
        self.pictures = threading.Semaphore(_PICTURES_AT_ONCE)
        self._viewer_origin, self._host = viewer_origin, host.lower()
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> str:
        """Where its page lies, without a slash at the end."""
        return f"http://{self._host}:{self.server_address[1]}"

    def knows_host(self, host: str) -> bool:
        """Whether a request's `Host` is a name by which this server is meant to be reached."""
        name = urlsplit(f"//{host}").hostname or ""
        return self._host not in _LOOPBACK or name in _LOOPBACK

    def trusts(self, origin: str) -> bool:
        """Whether a page of this origin may read."""
        parts = urlsplit(origin.lower())
        return origin.lower() == self._viewer_origin or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = "tessera"
    sys_version = ""
    timeout = 60  # a connection left open holds a thread

    def do_GET(self) -> None:
        self._answer_safely()

    def do_HEAD(self) -> None:
        self._answer_safely()

    def do_OPTIONS(self) -> None:
        """What a browser asks before it sends a range from another page."""
        more = {"Allow": _METHODS, "Access-Control-Allow-Methods": _METHODS, "Access-Control-Allow-Headers": "Range"}
        # Chromium asks whether a public page may reach this machine at all.
        more |= {"Access-Control-Allow-Private-Network": "true", "Access-Control-Max-Age": "600"}
        if not self.server.knows_host(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.FORBIDDEN, "this server is not known by that name.")
        else:
            self._head(HTTPStatus.NO_CONTENT, 0, more if self._trusted() else {"Allow": _METHODS})

    def _refuse_method(self) -> None:
        self.close_connection = True  # its body was not read
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "volumes are read only here.", {"Allow": _METHODS})

    do_POST = do_PUT = do_PATCH = do_DELETE = _refuse_method  # noqa: N815

    def _answer_safely(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page has moved on
        except OSError as error:
            _log.warning("%s cannot be served: %s", self.path, error)
            self.close_connection = True

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        if not self.server.knows_host(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.FORBIDDEN, "this server is not known by that name.")
            return
        first, _, rest = unquote(parts.path, errors="replace").removeprefix("/").partition("/")
        if first == "volumes":
            self._send_file(rest)
        elif first == "section":
            self._send_picture(rest, parse_qs(parts.query))
        elif first == "scene.json" and not rest:
            self._send(json.dumps(self.server.told).encode(), "json")
        elif first in _PAGE and not rest:
            content = (files("tessera.workflows") / "page" / _PAGE[first]).read_bytes()
            self._send(content, _PAGE[first].rsplit(".")[-1])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing of that name here.")

    # Pictures

    def _send_picture(self, name: str, query: Mapping[str, list[str]]) -> None:
        scene, kind = self.server.scene, name.removesuffix(".png")
        layer = scene.layer(kind)
        try:
            view = View(**{key: int(query.get(key, ["0"])[0]) for key in ("z", "zoom", "y", "x")})
            if layer is None or kind == name:
                self._refuse(HTTPStatus.NOT_FOUND, "there is no such layer.")
                return
            with self.server.pictures:
                picture = picture_of(scene, layer, view)
        except NotShownError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self._send(picture, "png")

    # Files

    def _send_file(self, path: str) -> None:
        kind, _, key = path.partition("/")
        layer = self.server.scene.layer(kind)
        place = None if layer is None else file_below(layer.volume.place, key)
        if place is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such file.")
            return
        try:
            with opened(place) as file:
                self._send_range(file)
        except FileNotFoundError:  # viewers ask for each chunk: one of zeros is not stored
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such file.")

    def _send_range(self, file: StoredFile) -> None:
        more = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        try:
            wanted = byte_range(self.headers.get("Range"), file.size)
        except ValueError as error:
            status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            self._refuse(status, str(error), {"Content-Range": f"bytes */{file.size}"})
            return
        start, stop = wanted or (0, file.size)
        if wanted:
            more["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        self._head(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK, stop - start, more)
        self._body(file.pieces(start, stop))

    # Answers

    def _trusted(self) -> str | None:
        origin = self.headers.get("Origin")
        return origin if origin and self.server.trusts(origin) else None

    def _send(self, content: bytes, kind: str) -> None:
        named = f"{_TYPES[kind]}; charset=utf-8" if kind in _TYPES else f"image/{kind}"
        self._head(HTTPStatus.OK, len(content), {"Content-Type": named, "Content-Security-Policy": _POLICY})
        self._body([content])

    def _refuse(self, status: HTTPStatus, why: str, more: Mapping[str, str] | None = None) -> None:
        content = f"{why}\n".encode()
        self._head(status, len(content), {"Content-Type": "text/plain; charset=utf-8", **(more or {})})
        self._body([content])

    def _head(self, status: HTTPStatus, length: int, more: Mapping[str, str]) -> None:
        own = {"Content-Length": str(length), "Cache-Control": "no-cache", "Vary": "Origin"}
        own |= {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
        if origin := self._trusted():  # on refusals too: a viewer must be able to tell a missing chunk from a failure
            own["Access-Control-Allow-Origin"] = origin
            own["Access-Control-Expose-Headers"] = "Accept-Ranges, Content-Length, Content-Range"
        self.send_response(status)
        for name, value in (own | dict(more)).items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, pieces: Iterable[bytes]) -> None:
        if self.command != "HEAD":
            for piece in pieces:
                self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        _log.debug(format, *args)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The half-open range of bytes that a `Range` header asks for; None where it asks for none that we know.

    >>> byte_range("bytes=2-4", 10), byte_range("bytes=-3", 10), byte_range("bytes=8-", 10), byte_range(None, 10)
    ((2, 5), (7, 10), (8, 10), None)

    Args:
      header: as it came; several ranges at once are answered with the whole file, as the protocol allows.
      size: of the file.

    Raises:
      ValueError: the range holds no byte of the file.

    Source: RFC 9110, section 14.
    """
    found = _RANGE.fullmatch((header or "").strip())
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise ValueError(f"{header} holds no byte: the file has {size}. Try bytes=0-{max(0, size - 1)}.")
    return start, stop
