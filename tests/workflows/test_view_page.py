"""The page of `tessera view` as a person sees it, in a real browser; and what pages elsewhere may fetch from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from browser import Browser, find_chromium, running_chromium
from tessera.images.colours import label_colours
from tessera.storage.volumes import open_volume
from viewed import START, put_scene, served

CHROMIUM = find_chromium()

_FETCH = (
    "fetch('%s', {headers: {Range: '%s'}}).then(async a => "
    "[a.status, a.headers.get('content-range'), [...new Uint8Array(await a.arrayBuffer())]])"
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium or Chrome on PATH: the page of tessera view was not looked at"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    put_scene(folder)
    return folder


@pytest.fixture(scope="module")
def server(lab: Path) -> Iterator[str]:
    with served(lab / "cells.zarr") as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with running_chromium(CHROMIUM, tmp_path_factory.mktemp("chromium") / "profile") as browser:
        browser.resize(1400, 1000)
        yield browser


def _slide(browser: Browser, name: str, value: float) -> None:
    browser.evaluate(
        f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('input')); }})(document.getElementById('{name}'))"
    )


def _seen(browser: Browser, folder: Path) -> np.ndarray:
    """The picture as the window shows it, red, green, blue, one value per voxel: the middle of each."""
    browser.screenshot(folder / "page.png")
    frame = browser.evaluate(
        "(r => [r.top, r.left, r.height, r.width])(document.getElementById('picture').getBoundingClientRect())"
    )
    top, left, height, width = frame
    y = np.round(top + (np.arange(64) + 0.5) * height / 64).astype(int)
    x = np.round(left + (np.arange(96) + 0.5) * width / 96).astype(int)
    return np.asarray(cv2.imread(str(folder / "page.png"))[..., ::-1][y[:, None], x])


def test_the_page_shows_the_section_that_the_slider_names(
    server: str, browser: Browser, lab: Path, tmp_path: Path
) -> None:
    browser.open(server, "cells.zarr", "open in neuroglancer", "napari --plugin")
    browser.wait_for("document.body.dataset.drawn == '2/0/0/0'")
    for kind in ("probability", "labels"):
        _slide(browser, f"opacity-{kind}", 0)
    raw = open_volume(lab / "raw.zarr").array[:]
    for z in (2, 4, 0):
        _slide(browser, "z", z)
        browser.wait_for(f"document.body.dataset.drawn == '{z}/0/0/0'")
        seen = _seen(browser, tmp_path)
        wanted = raw[START[0] + z, START[1] : START[1] + 64, START[2] : START[2] + 96]
        assert (seen[..., 0] == wanted).mean() > 0.99, "pixels at a voxel's edge may be its neighbour's"
    assert "section 0, rows 0 to 63, columns 0 to 95, 1 pixel = 1 voxel" in browser.text()


def test_labels_lie_over_raw_in_the_colours_of_every_picture(
    server: str, browser: Browser, lab: Path, tmp_path: Path
) -> None:
    browser.open(server, "cells.zarr")
    browser.wait_for("document.body.dataset.drawn == '2/0/0/0'")
    _slide(browser, "opacity-labels", 1)
    browser.evaluate("document.getElementById('show-probability').click()")
    browser.wait_for("document.getElementById('image-probability').hidden")
    ids = open_volume(lab / "cells.zarr").array[2]
    seen = _seen(browser, tmp_path)
    cell = ids > 0
    assert (seen[cell] == label_colours(ids)[cell]).all(axis=-1).mean() > 0.99
    assert (seen[~cell] == seen[~cell][:, :1]).all(axis=-1).mean() > 0.99, "grey where no cell is"


def test_the_volumes_are_listed_with_what_they_are(server: str, browser: Browser) -> None:
    browser.open(
        server, "cells.zarr", "finished", "5 x 64 x 96 uint64", "6 x 96 x 128 uint8", "50 x 4 x 4 nm", "predict"
    )
    link = browser.evaluate("document.querySelector('#links a').href")
    assert link.startswith("https://neuroglancer-demo.appspot.com/#!")
    assert browser.evaluate("[...document.querySelectorAll('#facts td')].map(t => t.innerText)")[7] == "3"


def test_a_name_cannot_put_a_script_into_the_page(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "<img src=x onerror=alert(1)>").mkdir()
    _, _, cells = put_scene(tmp_path / "<img src=x onerror=alert(1)>")
    with served(cells) as address:
        browser.open(address, "<img src=x onerror=alert(1)>")
        assert browser.evaluate("document.querySelectorAll('img[src=x]').length") == 0


def test_a_page_of_another_port_reads_chunks_and_ranges(
    server: str, browser: Browser, tmp_path: Path, lab: Path
) -> None:
    (tmp_path / "index.html").write_text("<title>elsewhere</title>elsewhere")
    chunk = (lab / "raw.zarr" / "0" / "c" / "0" / "0" / "0").read_bytes()
    with _static(tmp_path) as elsewhere:
        browser.open(elsewhere, "elsewhere")
        url = f"{server}/volumes/raw/0/c/0/0/0"
        # The second kind of range makes the browser ask for leave beforehand.
        for wanted, part in (("bytes=3-12", chunk[3:13]), ("bytes=-20", chunk[-20:])):
            status, told, body = browser.evaluate(_FETCH % (url, wanted))
            assert (status, bytes(body)) == (206, part) and told.endswith(f"/{len(chunk)}")
        missing = browser.evaluate(f"fetch('{server}/volumes/raw/0/c/7/7/7').then(a => a.status)")
        assert missing == 404, "a viewer takes it for zeros; without leave to read it, for a failure"


def test_a_page_of_unknown_origin_reads_nothing(server: str, browser: Browser) -> None:
    browser.open("data:text/html,stranger", "stranger")
    told = browser.evaluate(f"fetch('{server}/volumes/raw/zarr.json').then(a => 'read', e => 'refused')")
    assert told == "refused"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class _static:  # noqa: N801
    """A web server of somebody else's, at another port."""

    def __init__(self, folder: Path) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: _Quiet(*a, directory=str(folder)))  # type: ignore[arg-type]

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}/"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
