import json
import os
import pickle
import shutil
import stat
import threading

import numpy as np
import pytest
from PIL import Image

from histodistill.selection.image_rows import rows_of
from histodistill.selection.near_copies import near_pairs
from histodistill.training.data import storing, tile_cache, tile_store
from histodistill.training.data.pixel_source import LeftOut
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.storing import open_tiles
from histodistill.training.data.tile_cache import TileCache
from histodistill.training.data.tile_copies import pairs_of_copies
from histodistill.training.data.tile_store import StoredTiles, TileStore, store_of
from histodistill.training.data.tiles import Tiles
from histodistill.training.end_to_end import clear_cache
from histodistill.training.running.errors import InputError


TILES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


class Source:
    """A `PixelSource` of tiles in memory, whose state is that of a file; it counts how many it decodes."""

    def __init__(self, file, tiles=TILES, left_out=(), dies_at=None):
        self.file, self.tiles, self.left_out, self.dies_at = file, list(tiles), left_out, dies_at
        self.decoded = 0
        self.settings = {"kind": "test"}
        if not file.exists():
            file.write_bytes(b"tiles")

    def __len__(self):
        return len(self.tiles)

    def name(self, number):
        return f"tile {number}"

    def files(self):
        return [self.file]

    def decode(self, image_size, start):
        for first in range(start, len(self.tiles), 3):
            batch = []
            for number in range(first, min(first + 3, len(self.tiles))):
                if number == self.dies_at:
                    raise KeyboardInterrupt
                self.decoded += 1
                why = dict(self.left_out).get(number)
                batch.append(LeftOut(why, InputError(f"tile {number} is bad")) if why else self.tiles[number])
            yield batch


@pytest.fixture
def cache(tmp_path):
    return TileCache(tmp_path / "cache")


def test_tiles_are_decoded_once(tmp_path, cache):
    source = Source(tmp_path / "file")
    first = open_tiles(source, "mine", None, cache)
    assert isinstance(first, StoredTiles) and np.array_equal(first[:], TILES) and source.decoded == 20
    again = open_tiles(source, "mine", None, cache)
    assert source.decoded == 20 and np.array_equal(again[[3, 3, 1]], TILES[[3, 3, 1]])
    # Anything that decides pixels is another source.
    for change in (lambda: open_tiles(source, "mine", 8, cache), lambda: source.settings.update(convert="grey")):
        change()
    open_tiles(source, "mine", None, cache)
    assert source.decoded == 60
    # As are files that were written anew, though as large and of the same time.
    status = source.file.stat()
    source.file.write_bytes(b"other")
    os.utime(source.file, ns=(status.st_atime_ns, status.st_mtime_ns))
    open_tiles(source, "mine", None, cache)
    assert source.decoded == 80


def test_the_same_tiles_are_kept_once(tmp_path, cache):
    one, other = (open_tiles(Source(tmp_path / name), name, None, cache) for name in ("one", "other"))
    assert one.folder == other.folder and len(cache.entries()) == 1 and not list(cache.unfinished.glob("*/"))


def test_what_is_told_of_tiles_that_are_left_out_is_kept_with_their_source(tmp_path, cache):
    one, other = (Source(tmp_path / name, left_out={3: "glass"}.items()) for name in ("one", "other"))
    first = open_tiles(one, "one", None, cache)
    other.decode = lambda image_size, start: iter(
        [[LeftOut("glass", InputError("line 4 is bad")) if i == 3 else tile for i, tile in enumerate(TILES)]]
    )
    open_tiles(other, "other", None, cache)
    again, of_other = open_tiles(one, "one", None, cache), open_tiles(other, "other", None, cache)
    assert again.folder == of_other.folder == first.folder
    assert (str(again.left_out[3].error), str(of_other.left_out[3].error)) == ("tile 3 is bad", "line 4 is bad")


def test_a_killed_run_goes_on(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(storing, "_BYTES_PER_RECORD", 1)
    with pytest.raises(KeyboardInterrupt):
        open_tiles(Source(tmp_path / "file", dies_at=14, left_out={4: "glass"}.items()), "mine", None, cache)
    # What was written last may be there without being known of.
    (unfinished,) = (path for path in cache.unfinished.iterdir() if path.is_dir())
    with open(unfinished / "images.npy", "ab") as file:
        file.write(b"\1" * 100)
    source = Source(tmp_path / "file", left_out={4: "glass"}.items())
    found = open_tiles(source, "mine", None, cache)
    assert source.decoded == 8 and list(found.left_out) == [4]
    whole = open_tiles(
        Source(tmp_path / "again", left_out={4: "glass"}.items()), "mine", None, TileCache(tmp_path / "b")
    )
    assert found.folder.name == whole.folder.name
    assert not found[4].any() and np.array_equal(np.delete(found[:], 4, 0), np.delete(TILES, 4, 0))


@pytest.mark.parametrize("damage", ["{", '{"shape": [20, 8, 8, 3], "done": 3, "hash": "0", "left_out": []}', "[]"])
def test_damaged_progress_is_begun_anew(tmp_path, cache, monkeypatch, damage):
    monkeypatch.setattr(storing, "_BYTES_PER_RECORD", 1)
    with pytest.raises(KeyboardInterrupt):
        open_tiles(Source(tmp_path / "file", dies_at=14), "mine", None, cache)
    (unfinished,) = (path for path in cache.unfinished.iterdir() if path.is_dir())
    (unfinished / "done.json").write_text(damage)
    source = Source(tmp_path / "file")
    assert np.array_equal(open_tiles(source, "mine", None, cache)[:], TILES) and source.decoded == 20


def test_tiles_that_cannot_be_read_end_it_unless_they_are_skipped(tmp_path, cache):
    source = Source(tmp_path / "file", left_out={0: "unreadable", 7: "outside"}.items())
    with pytest.raises(InputError, match="tile 0 is bad"):
        open_tiles(source, "mine", None, cache)
    found = open_tiles(source, "mine", None, cache, skip_unreadable=True)
    assert {row: tile.why for row, tile in found.left_out.items()} == {0: "unreadable", 7: "outside"}
    assert str(found.left_out[0].error) == "tile 0 is bad"
    with pytest.raises(InputError, match="tile 0 is bad"):
        open_tiles(Source(tmp_path / "no", TILES[:2], {0: "glass", 1: "glass"}.items()), "no", None, cache)


def test_tiles_of_another_size_are_refused(tmp_path, cache):
    source = Source(tmp_path / "file", [*TILES[:5], TILES[5, :, :7]])
    with pytest.raises(InputError, match=r"^tile 5 is 7x8 pixels but tile 0 is 8x8: give image_size to bring"):
        open_tiles(source, "mine", None, cache)


def test_whoever_does_not_believe_times_has_them_decoded_again(tmp_path, cache):
    source = Source(tmp_path / "file", left_out={3: "glass"}.items())
    first = open_tiles(source, "mine", None, cache)
    again = open_tiles(source, "mine", None, cache, reread=True)
    assert source.decoded == 40 and again.folder == first.folder
    source.tiles[19] = TILES[0]  # and the file is as it was
    assert np.array_equal(open_tiles(source, "mine", None, cache)[19], TILES[19])
    assert np.array_equal(open_tiles(source, "mine", None, cache, reread=True)[19], TILES[0])
    assert np.array_equal(open_tiles(source, "mine", None, cache)[19], TILES[0])


def test_tiles_that_were_changed_in_the_cache_are_found_out(tmp_path, cache):
    source = Source(tmp_path / "file")
    first = open_tiles(source, "mine", None, cache)
    with open(first.folder / "images.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([255 - TILES[-1, -1, -1, -1]]))
    again = open_tiles(source, "mine", None, cache, reread=True)
    assert np.array_equal(again[:], TILES)


def test_nothing_that_lies_in_the_cache_is_believed_when_tiles_are_read_again(tmp_path, cache):
    source = Source(tmp_path / "file")
    first = open_tiles(source, "mine", None, cache)
    (record,) = cache.sources.iterdir()
    # Tiles that are called by the hash of others, where no record of a source leads to them.
    np.save(first.folder / "images.npy", 255 - TILES)
    record.unlink()
    assert np.array_equal(open_tiles(source, "mine", None, cache, reread=True)[:], TILES)
    # What looks as if a killed run had left it.
    shutil.rmtree(first.folder)
    record.unlink()
    forged = cache.unfinished / record.stem
    forged.mkdir()
    np.save(forged / "images.npy", 255 - TILES)
    (forged / "done.json").write_text(
        json.dumps({"shape": TILES.shape, "done": len(TILES), "hash": "0", "left_out": []})
    )
    again = open_tiles(source, "mine", None, cache, reread=True)
    assert np.array_equal(again[:], TILES)
    # What was found of the tiles.
    assert again.remembered("hash", lambda: "true") == "true" and not again.repeats.pairs.size
    for file in (again.folder / "known").iterdir():
        file.write_text("forged")
    np.save(again.folder / "repeats_pairs.npy", np.array([[0, 1]]))
    again = open_tiles(source, "mine", None, cache, reread=True)
    assert again.remembered("hash", lambda: "true") == "true" and not again.repeats.pairs.size


def test_files_that_change_meanwhile_are_refused(tmp_path, cache):
    source = Source(tmp_path / "file")
    decode = source.decode

    def changing(image_size, start):
        yield from decode(image_size, start)
        source.file.write_bytes(b"others")

    source.decode = changing
    with pytest.raises(InputError, match="files of mine have changed while they were read: run the command again"):
        open_tiles(source, "mine", None, cache)


def test_damaged_entries_are_made_anew(tmp_path, cache):
    source = Source(tmp_path / "file")
    for damage in (
        lambda folder: (folder / "tiles.json").write_text("{"),
        lambda folder: (folder / "images.npy").write_bytes(b""),
        lambda folder: np.save(folder / "images.npy", TILES[:3]),
        shutil.rmtree,
    ):
        damage(open_tiles(source, "mine", None, cache).folder)
        assert np.array_equal(open_tiles(source, "mine", None, cache)[:], TILES)


def test_several_at_once_decode_once(tmp_path, cache):
    source, found = Source(tmp_path / "file"), []
    threads = [
        threading.Thread(target=lambda: found.append(open_tiles(source, "mine", None, cache))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and source.decoded == 20


def test_only_its_owner_can_read_it(tmp_path):
    cache = TileCache(tmp_path / "new" / "cache")
    old = os.umask(0)
    try:
        open_tiles(Source(tmp_path / "file"), "mine", None, cache)
    finally:
        os.umask(old)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    cache.folder.chmod(0o755)
    open_tiles(Source(tmp_path / "file"), "mine", None, cache)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_places_that_cannot_be_a_cache_are_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("1")
    with pytest.raises(InputError, match="is no cache of tiles, and holds something else: give cache_dir a folder of"):
        open_tiles(Source(tmp_path / "file"), "mine", None, TileCache(tmp_path / "thesis"))
    with pytest.raises(InputError, match=r"tiles cannot be kept in .* give another cache_dir"):
        open_tiles(Source(tmp_path / "file"), "mine", None, TileCache(tmp_path / "file" / "cache"))
    (tmp_path / "empty").mkdir()
    assert open_tiles(Source(tmp_path / "file"), "mine", None, TileCache(tmp_path / "empty"))


@pytest.mark.parametrize("tag", [None, "Signature: 8a477f597d28d172789f06886806bc55\n# of another program\n"])
def test_a_folder_of_tiles_is_no_cache_of_them(tmp_path, tag):
    folder = tmp_path / "project"
    (folder / "tiles").mkdir(parents=True)
    (folder / "tiles" / "mine.png").write_bytes(b"mine")
    if tag:
        (folder / "CACHEDIR.TAG").write_text(tag)
    with pytest.raises(InputError, match="is no cache of tiles, and holds something else: give cache_dir a folder"):
        clear_cache.run(clear_cache.ClearCacheConfig(cache_dir=folder))
    assert (folder / "tiles" / "mine.png").read_bytes() == b"mine"


def test_the_limit_is_kept(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", "20kB")
    names = ["a", "b", "c", "d", "e", "f", "g", "h"]
    for number, name in enumerate(names):
        kept = open_tiles(Source(tmp_path / name, TILES + np.uint8(number)), name, None, cache)
        os.utime(kept.folder / "tiles.json", (number, number))
    left = [entry.source for entry in cache.entries()]
    assert left[0] == "h" and 1 < len(left) < 8 and left == names[::-1][: len(left)]
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", "1kB")
    with pytest.raises(InputError, match=r"take 3.8 kB .* may hold 1.0 kB: set HISTODISTILL_CACHE_LIMIT to more"):
        open_tiles(Source(tmp_path / "i", TILES[::-1]), "i", None, cache)
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", "plenty")
    with pytest.raises(InputError, match="HISTODISTILL_CACHE_LIMIT=plenty is no size: write it as in 50 GB"):
        open_tiles(Source(tmp_path / "j", TILES[::-1]), "j", None, cache)


@pytest.mark.parametrize(("text", "size"), [("3", 3), ("2 GB", 2e9), ("1.5tb", 1.5e12), ("7 k", 7000), ("4KB", 4000)])
def test_limits_are_read(monkeypatch, text, size):
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", text)
    assert tile_cache.limit_of_cache() == size


def test_a_disk_without_room_is_told_of_before_anything_is_written(tmp_path, cache, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"take 3.8 kB when .* 1.0 kB are free in .*: make room, or"):
        open_tiles(Source(tmp_path / "file"), "mine", None, cache)


def test_what_is_found_of_tiles_is_remembered(tmp_path, cache):
    store = open_tiles(Source(tmp_path / "file"), "mine", None, cache)
    assert store.remembered("sum", lambda: "1") == "1" and store.remembered("sum", lambda: "2") == "1"
    again = open_tiles(Source(tmp_path / "file"), "mine", None, cache)
    assert again.remembered("sum", lambda: "3") == "1" and again.remembered("other", lambda: "3") == "3"
    shutil.rmtree(again.folder)
    assert again.remembered("third", lambda: "4") == "4"
    in_memory = TileStore(TILES)
    assert in_memory.remembered("sum", lambda: "5") == "5" == in_memory.remembered("sum", lambda: "6")


def test_fingerprints_are_those_of_the_pixels(tmp_path, cache):
    store = open_tiles(Source(tmp_path / "file"), "mine", None, cache)
    labels, rows = np.arange(20) % 3, np.array([5, 2, 9])
    for rows in (np.array([5, 2, 9]), np.array([5, 9, 2])):
        plain = Tiles(TILES[rows], labels[rows]).fingerprint()
        assert Tiles(rows_of(store, rows), labels[rows]).fingerprint() == plain
        assert Tiles(rows_of(store, rows), labels[rows]).fingerprint() == plain  # the remembered one


def test_store_of_tells_what_views_have_in_common(tmp_path, cache):
    store = open_tiles(Source(tmp_path / "file"), "mine", None, cache)
    found = store_of([rows_of(store, [1, 2]), rows_of(store, [0])])
    assert found[0] is store and [rows.tolist() for rows in found[1]] == [[1, 2], [0]]
    assert store_of([rows_of(store, [1]), TILES]) is None and store_of([rows_of(TILES, [1])]) is None
    assert store_of([rows_of(store, [1]), rows_of(TileStore(TILES), [1])]) is None and store_of([]) is None


def test_what_is_sent_to_another_process_is_the_name_of_the_folder(tmp_path, cache):
    store = open_tiles(Source(tmp_path / "file"), "mine", None, cache)
    sent = pickle.dumps(store)
    assert len(sent) < 1000 and np.array_equal(pickle.loads(sent)[:], TILES)


def test_a_list_and_clearing(tmp_path, cache):
    assert cache.entries() == [] and cache.clear() == 0
    open_tiles(Source(tmp_path / "file"), "mine", None, cache)
    (entry,) = cache.entries()
    assert (entry.source, entry.count, entry.side) == ("mine", 20, 8) and entry.size >= TILES.nbytes
    assert cache.clear() >= entry.size and cache.entries() == []


def test_what_is_being_decoded_is_not_taken_out(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(storing, "_BYTES_PER_RECORD", 1)
    source = Source(tmp_path / "file")
    decode = source.decode

    def cleared_meanwhile(image_size, start):
        for number, batch in enumerate(decode(image_size, start)):
            if number == 3:
                cache.clear()
                cache._remove_left_behind()
            yield batch

    source.decode = cleared_meanwhile
    monkeypatch.setattr(tile_cache, "_LEFT_BEHIND", -1)
    assert np.array_equal(open_tiles(source, "mine", None, cache)[:], TILES)
    # What nobody decodes is.
    with pytest.raises(KeyboardInterrupt):
        open_tiles(Source(tmp_path / "other", dies_at=14), "other", None, cache)
    assert cache.clear() > 0 and not [path for path in cache.unfinished.iterdir() if path.is_dir()]


def test_a_folder_of_pictures_is_loaded_from_the_cache(tmp_path, monkeypatch):
    for i, (tile, label) in enumerate(zip(TILES, "ab" * 10, strict=True)):
        (tmp_path / "t" / "train" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(tmp_path / "t" / "train" / label / f"{i:02d}.png")
    first = load_tiles(tmp_path / "t", cache_dir=tmp_path / "cache")
    monkeypatch.setattr("histodistill.training.data.decoding._decode", None)
    again = load_tiles(tmp_path / "t", cache_dir=tmp_path / "cache")
    assert again.fingerprint() == first.fingerprint()
    assert np.array_equal(again.split("train").images[:], first.split("train").images[:])
    with pytest.raises(TypeError):
        load_tiles(tmp_path / "t", cache_dir=tmp_path / "cache", reread=True)


def test_near_copies_are_searched_once_whatever_splits_are_made(tmp_path, cache, monkeypatch):
    tiles = np.concatenate([TILES, np.rot90(TILES[3:5], axes=(1, 2))])
    store = open_tiles(Source(tmp_path / "file", tiles), "mine", None, cache)
    parts = [
        Tiles(rows_of(store, rows), np.zeros(len(rows), int)) for rows in (np.arange(0, 22, 2), np.arange(1, 22, 2))
    ]
    expected = near_pairs([np.asarray(part.images) for part in parts])
    assert len(expected) == 2 and np.array_equal(pairs_of_copies(parts), expected)
    again = open_tiles(Source(tmp_path / "file", tiles), "mine", None, cache)
    monkeypatch.setattr(tile_store, "find_repeats", None)
    assert np.array_equal(again.repeats.pairs, store.repeats.pairs)
    (again.folder / "repeats_first.npy").write_bytes(b"")
    with pytest.raises(TypeError):
        _ = open_tiles(Source(tmp_path / "file", tiles), "mine", None, cache).repeats


def test_parts_that_share_tiles_or_are_elsewhere_are_searched_as_they_are(tmp_path, cache):
    store = open_tiles(Source(tmp_path / "file"), "mine", None, cache)
    part = Tiles(rows_of(store, np.arange(5)), np.zeros(5, int))
    assert pairs_of_copies([part, part]).tolist() == [[i, i + 5] for i in range(5)]
    elsewhere = Tiles(TILES[:5], np.zeros(5, int))
    assert pairs_of_copies([elsewhere, part]).tolist() == [[i, i + 5] for i in range(5)]
