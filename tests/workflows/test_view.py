"""`tessera view`: who may read what, where a picture's pixels come from, and what other viewers are told."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from bundles import make_bundle
from objectstore import BUCKET, S3Server
from terminal import refusal
from tessera.geometry.boxes import Box
from tessera.images.previews import section_picture
from tessera.settings.predict import PredictSettings
from tessera.settings.pyramid import PyramidSettings
from tessera.settings.segment import SegmentSettings
from tessera.settings.view import ViewSettings
from tessera.storage.volumes import create_volume, open_volume
from tessera.workflows.predict import predict
from tessera.workflows.pyramid import pyramid
from tessera.workflows.scene import find_scene, inputs_of
from tessera.workflows.section_views import NotShownError, View, picture_of
from tessera.workflows.segment import segment
from tessera.workflows.view import told_of
from tessera.workflows.view_server import ViewServer
from viewed import RAW_SHAPE, SHAPE, START, Reply, ask, put_scene, served
from volumes import grey, put_volume

VIEWER = "https://neuroglancer-demo.appspot.com"


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    put_scene(folder)
    (folder / "secret").write_text("secret")
    (folder / "raw.zarr" / "out").symlink_to(folder / "secret")
    return folder


@pytest.fixture(scope="module")
def server(scene_folder: Path) -> Iterator[str]:
    with served(scene_folder / "cells.zarr") as address:
        yield address


def _pixels(png: bytes) -> NDArray[np.uint8]:
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGBA), np.uint8)


# The volumes' own files


def test_a_viewer_reads_the_volumes_over_http_as_they_are(server: str, scene_folder: Path) -> None:
    # The same library that neuroglancer's users write with, by the addresses that the link holds.
    for kind, name in (("raw", "raw"), ("probability", "probability"), ("labels", "cells")):
        over_http = open_volume(f"{server}/volumes/{kind}")
        assert np.array_equal(over_http.array[:], open_volume(scene_folder / f"{name}.zarr").array[:])


@pytest.mark.parametrize(
    ("wanted", "status", "cut"),
    [
        ("bytes=2-4", 206, slice(2, 5)),
        ("bytes=5-", 206, slice(5, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=0-99999999", 206, slice(None)),
        ("bytes=-99999999", 206, slice(None)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("lines=0-1", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
    ],
)
def test_ranges_of_a_file_are_served(server: str, scene_folder: Path, wanted: str, status: int, cut: slice) -> None:
    whole = (scene_folder / "raw.zarr" / "0" / "c" / "0" / "0" / "0").read_bytes()
    reply = ask(f"{server}/volumes/raw/0/c/0/0/0", Range=wanted)
    assert (reply.status, reply.body) == (status, whole[cut])
    sent = range(len(whole))[cut]
    told = f"bytes {sent[0]}-{sent[-1]}/{len(whole)}" if status == 206 else None
    assert reply.headers.get("Content-Range") == told
    assert reply.headers["Accept-Ranges"] == "bytes"
    head = ask(f"{server}/volumes/raw/0/c/0/0/0", "HEAD", Range=wanted)
    assert (head.status, head.body) == (status, b"")
    assert head.headers["Content-Length"] == str(len(whole[cut]))


def test_a_range_beyond_the_file_is_refused_with_its_size(server: str, scene_folder: Path) -> None:
    size = (scene_folder / "raw.zarr" / "zarr.json").stat().st_size
    for wanted in (f"bytes={size}-", "bytes=-0", "bytes=9-3"):
        reply = ask(f"{server}/volumes/raw/zarr.json", Range=wanted)
        assert (reply.status, reply.headers["Content-Range"]) == (416, f"bytes */{size}")


def _raw_path(server: str, path: str, method: str = "GET", **headers: str) -> Reply:
    """A request whose path no client has tidied."""
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    reply = Reply(answer.status, dict(answer.headers), answer.read())
    connection.close()
    return reply


@pytest.mark.parametrize(
    "path",
    [
        "/volumes/raw/../secret",
        "/volumes/raw/../../secret",
        "/volumes/raw/%2e%2e/secret",
        "/volumes/raw/%2E%2E%2Fsecret",
        "/volumes/raw/..%2fsecret",
        "/volumes/raw/%252e%252e/secret",
        "/volumes/raw/..%5csecret",
        "/volumes/raw/0/../../secret",
        "/volumes/raw//etc/passwd",
        "/volumes/raw/%2fetc/passwd",
        "//etc/passwd",
        "/volumes/raw/out",
        "/volumes/raw/zarr.json%00",
        "/volumes/raw/",
        "/volumes/raw",
        "/volumes/../secret",
        "/volumes/elsewhere/zarr.json",
        "/../secret",
        "/view.js/../../view.py",
        "/page/index.html",
        "/%ff",
    ],
)
def test_nothing_outside_the_volumes_is_served(server: str, scene_folder: Path, path: str) -> None:
    for way in (path, path.replace("/etc/passwd", str(scene_folder / "secret"))):
        reply = _raw_path(server, way)
        assert reply.status == 404 and b"secret" not in reply.body and b"root:" not in reply.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(server: str, scene_folder: Path, method: str) -> None:
    before = (scene_folder / "raw.zarr" / "zarr.json").read_bytes()
    reply = ask(f"{server}/volumes/raw/zarr.json", method)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert (scene_folder / "raw.zarr" / "zarr.json").read_bytes() == before


@pytest.mark.parametrize("origin", [VIEWER, "http://127.0.0.1:9", "http://localhost:8888"])
def test_the_viewer_and_pages_of_this_machine_may_read_even_what_is_not_there(server: str, origin: str) -> None:
    for path, status in (("zarr.json", 200), ("0/c/9/9/9", 404)):
        reply = ask(f"{server}/volumes/raw/{path}", Origin=origin)
        assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (status, origin)
    asked = {"Origin": origin, "Access_Control_Request_Headers": "range"}
    before = ask(f"{server}/volumes/raw/zarr.json", "OPTIONS", **asked)
    assert (before.status, before.headers["Access-Control-Allow-Headers"]) == (204, "Range")
    assert before.headers["Access-Control-Allow-Private-Network"] == "true"


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1.evil.example", f"{VIEWER}.evil.example", "https://127.0.0.1:9"],
)
def test_other_pages_that_the_browser_has_open_may_not_read(server: str, origin: str) -> None:
    for method in ("GET", "OPTIONS"):
        told = ask(f"{server}/volumes/raw/zarr.json", method, Origin=origin).headers
        assert not [name for name in told if name.startswith("Access-Control")]
    reply = ask(f"{server}/section/raw.png", Origin=origin)
    assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin", "not even as a picture in their page"


def test_a_page_that_took_this_machines_address_for_its_own_name_is_refused(server: str) -> None:
    for path in ("/volumes/raw/zarr.json", "/scene.json", "/"):
        assert _raw_path(server, path, Host="evil.example:80").status == 403
        assert _raw_path(server, path, Host="localhost:8480").status == 200, "as through a tunnel"


def test_it_listens_on_this_machine_alone_unless_told(scene_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = find_scene(ViewSettings(str(scene_folder / "raw.zarr")))
    with ViewServer("127.0.0.1", 0, scene, VIEWER) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
    with served(scene_folder / "raw.zarr", host="0.0.0.0") as address:
        assert "0.0.0.0: whoever reaches this machine can read these volumes" in caplog.text
        assert ask(f"{address}/scene.json").status == 200


# The scene


def test_the_chain_that_the_jobs_leave_is_followed_to_the_raw_volume(
    home: Path, database: Path, tmp_path: Path
) -> None:
    raw = put_volume(tmp_path / "raw.zarr", grey((4, 70, 90)), kind="image", made_by="ingest")
    bundle, common = make_bundle(tmp_path / "bundle"), {"engine": "serial"}
    predict(PredictSettings(str(raw), str(bundle), "membranes", roi="1:3,16:64,20:80", **common))
    segment(SegmentSettings(volume="membranes", output="cells", **common))
    scene = find_scene(ViewSettings("cells"))
    assert [layer.kind for layer in scene.layers] == ["labels", "probability", "raw"]
    assert [layer.volume.place.name for layer in scene.layers] == ["cells.zarr", "membranes.zarr", "raw.zarr"]
    shown = _pixels(picture_of(scene, scene.layers[2], View(1)))
    assert np.array_equal(shown[..., 0], open_volume(raw).array[2, 16:64, 20:80]), "the region, not the corner"


def test_a_volume_whose_input_has_been_moved_is_shown_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, probability, _ = put_scene(tmp_path)
    shutil.rmtree(raw)
    scene = find_scene(ViewSettings(str(probability)))
    assert [layer.kind for layer in scene.layers] == ["probability"]
    assert f"{probability} was made from {raw}, which cannot be shown" in caplog.text


def test_a_volume_that_is_still_being_written_is_shown_and_said_to_be(tmp_path: Path) -> None:
    path = put_volume(tmp_path / "v.zarr", grey((2, 8, 8)), kind="image", complete=False)
    assert [layer["state"] for layer in told_of(find_scene(ViewSettings(str(path))))["layers"]] == ["half-written"]


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_volumes_that_name_each_other_end_the_chain(tmp_path: Path, names: str) -> None:
    paths = [tmp_path / f"{name}.zarr" for name in names]
    for path, source in zip(paths, [*paths[1:], paths[0]], strict=True):
        put_volume(path, grey((2, 8, 8)), kind="image", input=str(source))
    assert len(list(inputs_of(open_volume(paths[0])))) == len(names)
    assert len(find_scene(ViewSettings(str(paths[0]))).layers) == 1


def test_a_plain_array_has_the_voxel_size_of_what_was_made_from_it(tmp_path: Path) -> None:
    raw = zarr.create_array(tmp_path / "plain.zarr", shape=(2, 8, 8), dtype="uint8", chunks=(1, 8, 8))
    raw[:] = grey((2, 8, 8))
    kind = {"kind": "membrane probability", "input": str(tmp_path / "plain.zarr")}
    made = put_volume(tmp_path / "p.zarr", grey((2, 8, 8)), **kind)
    with served(made) as address:
        told = json.loads(ask(f"{address}/scene.json").body)
    state = _state(told["links"]["neuroglancer"])
    plain = {layer["name"]: layer for layer in state["layers"]}["raw"]["source"]
    assert plain["transform"]["outputDimensions"] == {"z": [5e-8, "m"], "y": [4e-9, "m"], "x": [4e-9, "m"]}


# Pictures


@pytest.mark.parametrize("z", range(SHAPE[0]))
def test_a_picture_shows_the_sections_own_voxels(server: str, scene_folder: Path, z: int) -> None:
    raw, probability, labels = (
        open_volume(scene_folder / f"{name}.zarr").array[:] for name in ("raw", "probability", "cells")
    )
    region = raw[START[0] + z, START[1] : START[1] + SHAPE[1], START[2] : START[2] + SHAPE[2]]
    wanted = {"raw": region, "probability": probability[z], "labels": labels[z]}
    for kind, section in wanted.items():
        shown = _pixels(ask(f"{server}/section/{kind}.png?z={z}").body)
        expected = section_picture(kind, section)  # type: ignore[arg-type]
        seen = expected[..., 3] > 0
        assert np.array_equal(shown[..., 3], expected[..., 3])
        assert np.array_equal(shown[seen], expected[seen])


def test_a_window_begins_where_it_is_asked_to(server: str, scene_folder: Path) -> None:
    shown = _pixels(ask(f"{server}/section/raw.png?z=2&y=10&x=21").body)
    assert np.array_equal(shown[..., 0], open_volume(scene_folder / "raw.zarr").array[3, 26:80, 53:128])


def test_what_lies_beyond_a_layer_is_transparent(tmp_path: Path) -> None:
    # Seen from raw, the probability covers a part; here the other way round, by hand.
    _, probability, _ = put_scene(tmp_path)
    small = open_volume(probability)
    wide = put_volume(tmp_path / "wide.zarr", grey(RAW_SHAPE), kind="labels", input=small.url)
    scene = find_scene(ViewSettings(str(wide)))
    layer = scene.layer("probability")
    assert layer is not None
    alpha = _pixels(picture_of(scene, layer, View(2)))[..., 3]
    inside = np.zeros(RAW_SHAPE[1:], bool)
    inside[START[1] : START[1] + SHAPE[1], START[2] : START[2] + SHAPE[2]] = True
    assert not alpha[~inside].any()
    assert np.array_equal(alpha[inside].reshape(SHAPE[1:]), small.array[2 - START[0]])
    assert not _pixels(picture_of(scene, layer, View(0)))[..., 3].any(), "no such section of it"


@pytest.mark.parametrize("query", ["z=99", "z=-1", "z=0&zoom=9", "z=a", "z=0&y=64", "zoom=-1"])
def test_a_view_outside_the_scene_is_refused(server: str, query: str) -> None:
    assert ask(f"{server}/section/raw.png?{query}").status == 400
    assert ask(f"{server}/section/nothing.png").status == 404


LARGE = (2, 30_000, 30_000)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Sections of 900 million voxels, one shard of each written."""
    volume = create_volume(
        tmp_path / "large.zarr",
        LARGE,
        np.uint8,
        voxel_size_nm=(50, 4, 4),
        chunk=(1, 512, 512),
        shard=(1, 1024, 1024),
        attributes={"kind": "image", "complete": True, "invalid_sections": []},
    )
    volume.write(Box((1, 15360, 15360), (2, 16384, 16384)), grey((1, 1024, 1024)))
    return tmp_path / "large.zarr"


def test_a_large_section_is_never_read_whole(large: Path) -> None:
    scene = find_scene(ViewSettings(str(large)))
    picture_of(scene, scene.frame, View(0))  # what is imported on the way stays
    tracemalloc.start()
    shown = _pixels(picture_of(scene, scene.frame, View(1, 0, 15360, 15360)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(shown[..., 0], grey((1, 1024, 1024))[0])
    assert peak < 48 * 2**20, "a section is 858 MiB"
    with pytest.raises(NotShownError, match=r"has no level for this zoom: 17 million.*Zoom in, or run `tessera pyr"):
        picture_of(scene, scene.frame, View(1, 2))
    with served(large) as address:
        told = json.loads(ask(f"{address}/scene.json").body)
        refused = ask(f"{address}/section/raw.png?z=1&zoom=5")
    assert [zoom["layers"] for zoom in told["zooms"]] == [["raw"], ["raw"], [], [], [], []] and told["start"] == 1
    assert refused.status == 422 and b"tessera pyramid --volume" in refused.body


def test_a_zoom_is_read_from_the_level_that_has_it(home: Path, tmp_path: Path) -> None:
    blocks = np.kron(grey((1, 300, 600)), np.ones((2, 4, 4), np.uint8))  # its means over 4x4 are exact
    path = put_volume(tmp_path / "v.zarr", blocks, kind="image", made_by="ingest")
    pyramid(PyramidSettings(str(path), levels=2, engine="serial"))
    (path / "0" / "c" / "0" / "0" / "0").unlink()  # what is read of the finest level is black now
    scene = find_scene(ViewSettings(str(path)))
    assert len(scene.zooms) == 3
    shown = _pixels(picture_of(scene, scene.frame, View(0, 2)))
    assert np.array_equal(shown[..., 0], grey((1, 300, 600))[0])


def test_chunks_of_whole_sections_are_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(2, 20_000, 20_000), dtype="uint8", chunks=(1, 20_000, 20_000))
    scene = find_scene(ViewSettings(str(tmp_path / "a.zarr")))
    with pytest.raises(NotShownError, match=r"chunks of 381 MiB.*Save it with chunks such as \(16, 256, 256\)"):
        picture_of(scene, scene.frame, View(0))


# Other viewers


def _state(link: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(unquote(link.partition("#!")[2]))
    return state


def test_the_link_holds_a_state_that_shows_every_layer_where_it_lies(server: str, scene_folder: Path) -> None:
    links = json.loads(ask(f"{server}/scene.json").body)["links"]
    assert links["neuroglancer"].startswith(f"{VIEWER}/#!%7B")
    state = _state(links["neuroglancer"])
    assert state["dimensions"] == {"x": [4e-9, "m"], "y": [4e-9, "m"], "z": [5e-8, "m"]}
    middle = [a + (n - 1) / 2 for a, n in zip(START, SHAPE, strict=True)]
    assert state["position"] == middle[::-1], "of the region, in the raw volume's voxels"
    layers = {layer["name"]: layer for layer in state["layers"]}
    assert list(layers) == ["raw", "probability", "labels"], "labels on top"
    assert {name: layer["type"] for name, layer in layers.items()} == {
        "raw": "image",
        "probability": "image",
        "labels": "segmentation",
    }
    assert all(layers[name]["source"] == f"zarr3://{server}/volumes/{name}/" for name in layers)
    assert "emitRGBA" in layers["probability"]["shader"] and "emitGrayscale" in layers["raw"]["shader"]
    paths = [str(scene_folder / f"{name}.zarr") for name in ("raw", "probability", "cells")]
    assert links["napari"] == f"napari --plugin napari-ome-zarr {' '.join(paths)}"


def test_a_zarr_2_volume_is_named_as_one(tmp_path: Path) -> None:
    create_volume(tmp_path / "old.zarr", (2, 8, 8), np.uint8, voxel_size_nm=(50, 4, 4), ome_zarr="0.4")
    with served(tmp_path / "old.zarr") as address:
        state = _state(json.loads(ask(f"{address}/scene.json").body)["links"]["neuroglancer"])
        assert state["layers"][0]["source"] == f"zarr2://{address}/volumes/raw/"
        assert ask(f"{address}/volumes/raw/.zattrs").status == 200


def test_volumes_in_a_bucket_are_shown_to_viewers_that_cannot_reach_it(s3: S3Server, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/em/v.zarr"
    volume = create_volume(url, (2, 16, 16), np.uint8, voxel_size_nm=(50, 4, 4), attributes={"kind": "image"})
    volume.write(Box.whole(volume.shape), grey((2, 16, 16)))
    with served(url) as address:
        assert np.array_equal(open_volume(f"{address}/volumes/raw").array[:], grey((2, 16, 16)))
        assert ask(f"{address}/volumes/raw/0/c/9/9/9").status == 404
        assert np.array_equal(_pixels(ask(f"{address}/section/raw.png?z=1").body)[..., 0], grey((2, 16, 16))[1])
        assert f"{address}/volumes/raw/" in json.loads(ask(f"{address}/scene.json").body)["links"]["napari"]


# The command


def test_the_command_serves_until_it_is_interrupted(scene_folder: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tessera.cli", "view", str(scene_folder / "cells.zarr"), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(4)]
        page = told[0].split()[1]
        assert told[1].startswith(f"neuroglancer  {VIEWER}/#!") and "napari --plugin napari-ome-zarr" in told[2]
        assert b"view.js" in ask(page).body
        os.kill(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, rest) == (0, "no longer served\n"), errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["view"], "volume is not given. Try --volume my-cells."),
        (["view", "gone"], "gone does not exist: looked for"),
        (["view", "gone", "--port", "99999"], "port=99999 is no TCP port: give one of 1024 to 65535, or 0. Try 8480."),
        (["view", "gone", "--neuroglancer", "ng"], "neuroglancer=ng is no page's address"),
        (["view", "gone", "--host", ""], "host is empty, which would listen everywhere. Try 127.0.0.1."),
    ],
)
def test_what_cannot_be_shown_is_refused(
    capsys: pytest.CaptureFixture[str], home: Path, words: list[str], told: str
) -> None:
    assert told in refusal(capsys, home, *words)


def test_a_port_that_is_taken_is_named_with_the_next(
    capsys: pytest.CaptureFixture[str], home: Path, server: str, scene_folder: Path
) -> None:
    port = urlsplit(server).port
    told = refusal(capsys, home, "view", scene_folder / "raw.zarr", "--port", port)
    assert f"nothing can listen at 127.0.0.1:{port}" in told and told.endswith(
        f"Try --port {int(port or 0) + 1}, or 0 for a free one."
    )
