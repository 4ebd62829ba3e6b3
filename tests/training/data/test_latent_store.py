import shutil
import stat
import threading

import numpy as np
import pytest

from histodistill.training.data import latent_store, tile_cache
from histodistill.training.data.latent_store import Block, LatentsPlan, find_latents, open_latents
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tile_cache import NoRoomError, TileCache
from histodistill.training.data.tile_store import folders_of
from histodistill.training.running.errors import InputError


SHAPE = (10, 8, 2, 4, 4)
BITS = np.random.default_rng(0).integers(-(2**15), 2**15, SHAPE).astype(np.int16)
PLAN = LatentsPlan("0123", "mine", 16, SHAPE, "float16", tiles_per_block=3)


class Maker:
    """Makes blocks of `BITS`, and counts them; it ends before the `dies_at`th as a kill would."""

    def __init__(self, dies_at=None):
        self.made, self.dies_at = [], dies_at

    def __call__(self, first, stop):
        if len(self.made) == self.dies_at:
            raise KeyboardInterrupt
        self.made.append((first, stop))
        return Block(BITS[first:stop], first / 100, 2.0 * (stop - first))


@pytest.fixture
def cache(tmp_path):
    return TileCache(tmp_path / "cache")


def test_latents_are_made_once(cache):
    make = Maker()
    assert find_latents(cache, PLAN) is None
    stored = open_latents(cache, PLAN, make)
    assert make.made == [(0, 3), (3, 6), (6, 9), (9, 10)]
    tiles, views = np.array([9, 0, 0, 4]), np.array([7, 0, 1, 3])
    assert np.array_equal(stored.read(tiles, views), BITS[tiles, views])
    assert PLAN.nbytes == BITS.nbytes
    assert stored.largest_error == 0.09 and stored.rms_error == pytest.approx(np.sqrt(20 / BITS.size))
    again = open_latents(cache, PLAN, Maker(dies_at=0))
    assert np.array_equal(again.read(tiles, views), BITS[tiles, views])
    assert find_latents(cache, PLAN).rms_error == stored.rms_error
    assert [path.name for path in cache.unfinished.iterdir()] == ["latents-0123.lock"]


def test_killed_work_goes_on(cache):
    with pytest.raises(KeyboardInterrupt):
        open_latents(cache, PLAN, Maker(dies_at=2))
    assert find_latents(cache, PLAN) is None
    rest = Maker()
    stored = open_latents(cache, PLAN, rest)
    assert rest.made == [(6, 9), (9, 10)]
    assert np.array_equal(stored.read(np.arange(10), np.zeros(10, int)), BITS[:, 0])


@pytest.mark.parametrize("file", ["latents.npy", "blocks.npy"])
def test_damaged_work_is_begun_anew(cache, file):
    with pytest.raises(KeyboardInterrupt):
        open_latents(cache, PLAN, Maker(dies_at=2))
    (cache.unfinished / "latents-0123" / file).write_bytes(b"")
    make = Maker()
    open_latents(cache, PLAN, make)
    assert len(make.made) == 4


@pytest.mark.parametrize(
    "damage", [lambda f: (f / "latents.npy").write_bytes(b""), lambda f: (f / "latents.json").unlink()]
)
def test_damaged_latents_are_made_anew(cache, damage):
    open_latents(cache, PLAN, Maker())
    damage(cache.latents / "0123")
    assert find_latents(cache, PLAN) is None
    make = Maker()
    stored = open_latents(cache, PLAN, make)
    assert len(make.made) == 4 and np.array_equal(stored.read(np.array([5]), np.array([2])), BITS[[5], [2]])


def test_several_share_the_work(cache):
    both_at_work = threading.Barrier(2, timeout=60)

    class Together(Maker):
        def __call__(self, first, stop):
            if not self.made:
                both_at_work.wait()  # each has a block of its own
            return super().__call__(first, stop)

    makers, found = [Together(), Together()], []
    threads = [
        threading.Thread(target=lambda make=make: found.append(open_latents(cache, PLAN, make, is_shown=False)))
        for make in makers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(makers[0].made + makers[1].made) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert all(make.made for make in makers)
    for stored in found:
        assert np.array_equal(stored.read(np.arange(10), np.full(10, 5)), BITS[:, 5])


def test_what_another_leaves_undone_is_done_in_the_end(cache):
    begun, may_die = threading.Event(), threading.Event()

    class Dies(Maker):
        def __call__(self, first, stop):
            begun.set()
            may_die.wait(60)
            raise InputError("it is dead")

    def work():
        with pytest.raises(InputError):
            open_latents(cache, PLAN, Dies(), is_shown=False)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(60)
    make = Maker()
    release = threading.Timer(0.3, may_die.set)
    release.start()
    stored = open_latents(cache, PLAN, make, is_shown=False)
    thread.join()
    # The first block was waited for, and comes last.
    assert make.made == [(3, 6), (6, 9), (9, 10), (0, 3)]
    assert np.array_equal(stored.read(np.array([0]), np.array([0])), BITS[[0], [0]])


def test_only_its_owner_can_read_them(cache):
    seen = []

    class Looks(Maker):
        def __call__(self, first, stop):
            seen.extend(cache.folder.rglob("*"))
            return super().__call__(first, stop)

    open_latents(cache, PLAN, Looks())
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    private = [cache.unfinished, cache.latents, *(p for p in [*cache.latents.rglob("*")])]
    assert any(path.name == "latents.npy" for path in seen)
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in private)


def test_the_limit_is_kept_but_not_by_taking_out_the_tiles(tmp_path, cache, monkeypatch):
    np.savez(
        tmp_path / "mine.npz",
        train_images=np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
        train_labels=np.arange(8) % 2,
    )
    tiles = load_tiles(tmp_path / "mine.npz", cache_dir=cache.folder).split("train")
    keep = folders_of([tiles.images])
    assert len(keep) == 1
    sizes = {entry.what: entry.size for entry in cache.entries()}
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", f"{sizes['tiles'] + PLAN.nbytes - 1}B")
    message = (
        r"^latents of these tiles take 5.1 kB beside the .* that are read with them, "
        r"and the cache of tiles may hold .*: set "
    )
    with pytest.raises(NoRoomError, match=message):
        open_latents(cache, PLAN, Maker(), keep=keep)
    assert [entry.what for entry in cache.entries()] == ["tiles"]
    open_latents(cache, PLAN, Maker())  # who does not need them
    assert [entry.what for entry in cache.entries()] == ["latents"]


def test_a_disk_without_room_is_told_of(cache, monkeypatch):
    usage = shutil.disk_usage(cache.folder.parent)
    monkeypatch.setattr(tile_cache.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(NoRoomError, match=r"^latents of these tiles take 5.1 kB, and 10 B are free in "):
        open_latents(cache, PLAN, Maker())
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(latent_store.os, "fsync", full)
    with pytest.raises(InputError, match=r"latents cannot be written to .* \(No space left on device\): make room"):
        open_latents(cache, PLAN, Maker())


def test_clearing_takes_them_out_but_not_from_under_who_makes_them(cache):
    open_latents(cache, PLAN, Maker())
    cache.clear()
    assert find_latents(cache, PLAN) is None

    class Clears(Maker):
        def __call__(self, first, stop):
            cache.clear()
            return super().__call__(first, stop)

    make = Clears()
    open_latents(cache, PLAN, make)
    assert len(make.made) == 4
    with pytest.raises(KeyboardInterrupt):
        open_latents(cache, LatentsPlan(**{**vars(PLAN), "key": "45"}), Maker(dies_at=1))
    assert (cache.unfinished / "latents-45").is_dir()
    cache.clear()
    assert not (cache.unfinished / "latents-45").exists()
