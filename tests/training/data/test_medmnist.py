"""MedMNIST: the facts, the files' layout, and fetching from a server on this machine."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import small_sources
from PIL import Image
from small_sources import packed, refused

from histodistill.training.data import download, medmnist
from histodistill.training.data.medmnist import MEDMNIST
from histodistill.training.data.sources import list_tiles, load_tiles
from histodistill.training.running.files import md5_of


def arrays(size: int = 28, classes: int = 9, per_class: int = 2) -> dict[str, np.ndarray]:
    """As PathMNIST has them."""
    return small_sources.arrays(size, classes, per_class)


# --- facts ---


def test_facts_are_complete():
    assert list(MEDMNIST) == ["pathmnist", "dermamnist", "retinamnist", "bloodmnist"]
    assert [len(facts.class_names) for facts in MEDMNIST.values()] == [9, 7, 5, 8]
    sums = [md5 for facts in MEDMNIST.values() for md5 in facts.md5.values()]
    assert len(set(sums)) == 16 and all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in sums)
    assert MEDMNIST["pathmnist"].md5[28] == "a8b06965200029087d5bd730944a56c1"
    assert MEDMNIST["pathmnist"].file_name(28) == "pathmnist.npz"
    assert MEDMNIST["pathmnist"].file_name(224) == "pathmnist_224.npz"
    assert MEDMNIST["dermamnist"].license == "CC BY-NC 4.0"


# --- whose names, licence and credit a file gets ---


@pytest.fixture
def published(monkeypatch):
    """Files that count as published: `published["pathmnist", 64]` are the bytes of pathmnist_64.npz."""
    content = {("pathmnist", size): packed(arrays(size)) for size in (28, 64)}
    for (name, size), file in content.items():
        md5 = medmnist.MEDMNIST[name].md5 | {size: hashlib.md5(file).hexdigest()}
        monkeypatch.setitem(medmnist.MEDMNIST, name, replace(medmnist.MEDMNIST[name], md5=md5))
    return content


@pytest.mark.parametrize(
    "option", [{"group_column": "patient"}, {"group_pattern": "(?P<group>.)"}, {"group_kind": "slide"}]
)
def test_groups_that_are_asked_for_are_refused(tmp_path, published, option):
    (tmp_path / "pathmnist.npz").write_bytes(published["pathmnist", 28])
    assert "pathmnist has no groups" in refused("pathmnist", download_dir=tmp_path, download=False, **option)


def test_a_listing_of_a_published_file(tmp_path, published):
    (tmp_path / "pathmnist_64.npz").write_bytes(published["pathmnist", 64])
    listing = list_tiles("pathmnist", download_dir=tmp_path, download=False, image_size=64)
    assert listing.name == "pathmnist" and listing.class_names == list(MEDMNIST["pathmnist"].class_names)
    assert listing.sizes == {(64, 64): 54} and listing.bytes_on_disk == len(published["pathmnist", 64])


@pytest.mark.parametrize("size", [28, 64])
def test_a_published_file_is_known_wherever_it_is(tmp_path, published, size, capsys):
    path = tmp_path / MEDMNIST["pathmnist"].file_name(size)
    path.write_bytes(published["pathmnist", size])
    source = load_tiles(path)
    assert source.name == "pathmnist" and source.class_names == list(MEDMNIST["pathmnist"].class_names)
    assert source.license == "CC BY 4.0" and "NCT-CRC-HE-100K" in source.attribution
    np.testing.assert_array_equal(source.split("validation").images, arrays(size)["val_images"])
    assert "none of the files" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("pathmnist_mine9", "pathmnist_mine9"),
        ("pathmnist_1k", "pathmnist_1k"),
        ("pathmnist", "./pathmnist"),  # as a path means it
        ("PathMNIST", "./PathMNIST"),
        ("pathmnist_64", "pathmnist_64"),
        ("pathmnist-siteB", "pathmnist-siteB"),
    ],
)
def test_a_file_that_is_only_called_so_gets_no_names(tmp_path, published, name, called, capsys):
    np.savez(tmp_path / f"{name}.npz", **arrays(classes=9, per_class=3))
    source = load_tiles(tmp_path / f"{name}.npz")
    assert source.name == called and source.class_names == [f"class {i}" for i in range(9)]
    assert source.license is None and source.attribution is None
    line = next(line for line in capsys.readouterr().err.splitlines() if "MedMNIST" in line)
    assert f"{name}.npz is none of the files that MedMNIST published" in line
    assert "class_names" in line and "--license" in line


@pytest.mark.parametrize(
    ("name", "of"), [("dermamnist", "pathmnist"), ("pathmnist_128", "pathmnist"), ("renamed", "pathmnist")]
)
def test_a_published_file_under_another_name_is_not_known(tmp_path, published, name, of):
    (tmp_path / f"{name}.npz").write_bytes(published[of, 28])
    source = load_tiles(tmp_path / f"{name}.npz")
    assert source.class_names[0] == "class 0" and source.license is None


def test_names_in_the_file_need_no_note(tmp_path, capsys):
    names = np.array([f"tissue {i}" for i in range(9)])
    np.savez(tmp_path / "bloodmnist_ours.npz", class_names=names, **arrays())
    assert load_tiles(tmp_path / "bloodmnist_ours.npz").class_names == names.tolist()
    assert "MedMNIST" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["phantom", "pathmnist", "BloodMNIST"])
def test_a_folder_that_is_called_like_a_public_set_is_not_it(tmp_path, name):
    for label in "ab":
        (tmp_path / name / "train" / label).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (i, 0, ord(label))).save(tmp_path / name / "train" / label / f"{i}.png")
    assert load_tiles(tmp_path / name).name == f"./{name}"


# --- fetching ---


class Server:
    """Serves one file, with ranges; can cut answers short, refuse, or send something else."""

    def __init__(self, content: bytes):
        self.content = content
        self.cuts: list[int] = []  # for each coming answer: after how many bytes the connection breaks
        self.status = 200
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                outer.asked.append((self.path, wanted))
                if outer.status != 200:
                    self.send_error(outer.status)
                    return
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and outer.ranges else 0
                if start and start >= len(outer.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(outer.content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    end = len(outer.content) - 1
                    self.send_header("Content-Range", f"bytes {start}-{end}/{len(outer.content)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.cuts.pop(0)] if outer.cuts else body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/files/"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    served = Server(packed(arrays()))
    facts = replace(
        MEDMNIST["pathmnist"], md5=MEDMNIST["pathmnist"].md5 | {28: hashlib.md5(served.content).hexdigest()}
    )
    monkeypatch.setitem(medmnist.MEDMNIST, "pathmnist", facts)
    monkeypatch.setattr(medmnist, "FILES_URL", served.url)
    monkeypatch.setattr(download, "_PIECE", 100)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield served
    served.close()


def test_fetch_then_offline(server, tmp_path):
    source = load_tiles("PathMNIST", download_dir=tmp_path / "cache")
    assert source.name == "pathmnist" and source.class_names[8] == "colorectal adenocarcinoma epithelium"
    assert server.asked == [("/files/pathmnist.npz", None)]
    assert (tmp_path / "cache" / "pathmnist.npz").read_bytes() == server.content
    assert not (tmp_path / "cache" / "pathmnist.npz.part").exists()
    server.close()
    again = load_tiles("pathmnist", download_dir=tmp_path / "cache", download=False)
    assert again.fingerprint() == source.fingerprint()
    assert len(server.asked) == 1


def test_sizes_have_files_of_their_own(server, tmp_path, monkeypatch):
    server.content = packed(arrays(size=64))
    md5 = {28: "0" * 32, 64: hashlib.md5(server.content).hexdigest()}
    monkeypatch.setitem(medmnist.MEDMNIST, "pathmnist", replace(MEDMNIST["pathmnist"], md5=md5))
    assert load_tiles("pathmnist", image_size=64, download_dir=tmp_path).image_size == 64
    assert server.asked == [("/files/pathmnist_64.npz", None)]


def test_another_size_is_made_from_28_pixels(server, tmp_path):
    assert load_tiles("pathmnist", image_size=32, download_dir=tmp_path).split("test").images.shape[1:] == (32, 32, 3)
    assert server.asked == [("/files/pathmnist.npz", None)]


def test_cut_connections_are_taken_up_at_once(server, tmp_path):
    server.cuts = [1000, 500]
    load_tiles("pathmnist", download_dir=tmp_path)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-", "bytes=1500-"]


def test_a_later_call_takes_up_what_an_earlier_one_left(server, tmp_path):
    server.cuts = [1000, 0]
    message = refused("pathmnist", download_dir=tmp_path)
    assert "stopped after 1000 bytes" in message and "run the same again" in message
    assert not (tmp_path / "pathmnist.npz").exists()
    load_tiles("pathmnist", download_dir=tmp_path)
    assert server.asked[-1][1] == "bytes=1000-"
    assert md5_of(tmp_path / "pathmnist.npz") == MEDMNIST["pathmnist"].md5[28]


def test_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "pathmnist.npz.part").write_bytes(server.content[:700])
    server.ranges = False
    load_tiles("pathmnist", download_dir=tmp_path)
    assert (tmp_path / "pathmnist.npz").read_bytes() == server.content


def test_part_that_is_whole_already(server, tmp_path):
    (tmp_path / "pathmnist.npz.part").write_bytes(server.content)
    load_tiles("pathmnist", download_dir=tmp_path)
    assert (tmp_path / "pathmnist.npz").read_bytes() == server.content


def test_wrong_checksum_leaves_no_file(server, tmp_path):
    server.content = server.content[:-1] + b"?"
    message = refused("pathmnist", download_dir=tmp_path)
    assert hashlib.md5(server.content).hexdigest() in message and MEDMNIST["pathmnist"].md5[28] in message
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_not_found(server, tmp_path):
    server.status = 404
    message = refused("pathmnist", download_dir=tmp_path)
    assert "answered 404 Not Found" in message and f"put {server.url}pathmnist.npz there by hand" in message
    assert len(server.asked) == 1
    assert not (tmp_path / "pathmnist.npz").exists()


def test_no_network_says_which_file_to_put_where(server, tmp_path, monkeypatch):
    server.close()
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path / "root"))
    for download_allowed in (True, False):
        message = refused("pathmnist", download=download_allowed)
        assert f"pathmnist.npz is not in {tmp_path / 'root'}" in message
        assert f"put {server.url}pathmnist.npz there" in message and MEDMNIST["pathmnist"].md5[28] in message


def test_damaged_file_in_the_cache_is_not_used(server, tmp_path):
    (tmp_path / "pathmnist.npz").write_bytes(server.content[:100])
    message = refused("pathmnist", download_dir=tmp_path)
    assert "not the file that MedMNIST published" in message and "delete it" in message
    assert server.asked == []


def test_cache_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused("pathmnist", download_dir=tmp_path / "file" / "cache")


def test_fetch_waits_for_nobody_when_the_file_is_there(server, tmp_path):
    (tmp_path / "pathmnist.npz").write_bytes(b"put there by another process")
    download.fetch(server.url + "pathmnist.npz", tmp_path / "pathmnist.npz", "0" * 32)
    assert server.asked == []
