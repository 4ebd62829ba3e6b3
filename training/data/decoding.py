"""From files of pictures to pixels: the one place where pictures that users give are decoded, one or very many."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from histodistill.training.data.colour_forms import NO_RULES, DecodingRules
from histodistill.training.data.pictures import Noted, Picture, decode_picture, mode_of, size_of
from histodistill.training.data.pixel_source import Decoded, LeftOut
from histodistill.training.running.errors import InputError
from histodistill.training.running.threads import usable_cores


# Threads that decode pictures, at most.
_MOST_THREADS = 8
# Pictures that are decoded ahead, at most, and the bytes that they may take together.
_AHEAD, _BYTES_AHEAD = 512, 2**28
# Pictures that a thread takes at a time, at most: each time costs as much as a good part of a small picture.
_AT_ONCE = 16

_T = TypeVar("_T")

#: A picture to decode: what messages call it, and its file or bytes.
Entry = tuple[str, Path | bytes]


def decode_each(
    entries: Iterable[Entry],
    image_size: int | None = None,
    rules: DecodingRules = NO_RULES,
    noted: Noted | None = None,
) -> Iterator[Decoded]:
    """Decodes pictures in several threads, in their order, some hundred ahead of what was taken.

    Pillow decodes and resizes without holding up other threads, so that two of them do nearly what two processes do.

    Args:
        entries: The pictures. They are asked for from the thread that takes the results.
        image_size: See `decode_picture`.
        rules: See `decode_picture`.
        noted: Counts what is to be told of them; `noted.tell()` tells it.

    Yields:
        uint8 H×W×3, or for one that cannot be used why.
    """
    entries = iter(entries)
    threads = min(_MOST_THREADS, usable_cores())
    # Until it is known how large pictures are.
    ahead, at_once = 2 * threads, 1
    waiting: deque[tuple[list[Entry], Future[list[Picture | LeftOut]]]] = deque()
    under_way = 0
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            while under_way < ahead and (chunk := list(islice(entries, at_once))):
                waiting.append((chunk, pool.submit(_decode, chunk, image_size, rules)))
                under_way += len(chunk)
            if not waiting:
                return
            chunk, future = waiting.popleft()
            for (name, _), picture in zip(chunk, future.result(), strict=True):
                if isinstance(picture, LeftOut):
                    yield picture
                    continue
                if noted is not None:
                    noted.add(name, picture.notes)
                ahead = max(2 * threads, min(_AHEAD, _BYTES_AHEAD // max(1, picture.pixels.nbytes)))
                at_once = max(1, min(_AT_ONCE, ahead // (4 * threads)))
                yield picture.pixels
            under_way -= len(chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def decode_stream(
    batches: Iterable[Sequence[Entry]],
    image_size: int | None = None,
    rules: DecodingRules = NO_RULES,
    noted: Noted | None = None,
) -> Iterator[list[Decoded]]:
    """As `decode_each`, of pictures that come in batches; gives what became of each batch that is not empty.

    Threads work ahead beyond the end of a batch, so that none ever waits for the slowest picture of one.
    """
    sizes: deque[int] = deque()

    def entries() -> Iterator[Entry]:
        for batch in batches:
            if len(batch):
                sizes.append(len(batch))
                yield from batch

    of_batch: list[Decoded] = []
    for decoded in decode_each(entries(), image_size, rules, noted):
        of_batch.append(decoded)
        if len(of_batch) == sizes[0]:
            sizes.popleft()
            yield of_batch
            of_batch = []


def count_sizes(entries: Iterable[Entry], skip_unreadable: bool = False) -> Counter[tuple[int, int]]:
    """How many pictures there are of each size, by their headers: nothing is decoded.

    Args:
        entries: The pictures.
        skip_unreadable: Whether those that cannot be read are left out.

    Returns:
        Width and height in pixels, as viewers show it → pictures.

    Raises:
        InputError: Naming the first that cannot be read.
    """
    return _counted(size_of, entries, skip_unreadable)


def count_modes(entries: Iterable[Entry], skip_unreadable: bool = False) -> Counter[str]:
    """How many pictures there are of each colour mode, as Pillow calls it, by their headers: `{"RGB": 98, "L": 2}`.

    Args:
        entries: The pictures.
        skip_unreadable: Whether those that cannot be read are left out.

    Raises:
        InputError: Naming the first that cannot be read.
    """
    return _counted(mode_of, entries, skip_unreadable)


def _counted(read: Callable[[str, Path | bytes], _T], entries: Iterable[Entry], skip: bool) -> Counter[_T]:
    """What is read of pictures → how many it is read of."""
    counts: Counter[_T] = Counter()
    for name, source in entries:
        with suppress(InputError) if skip else nullcontext():
            counts[read(name, source)] += 1
    return counts


def _decode(entries: Sequence[Entry], image_size: int | None, rules: DecodingRules) -> list[Picture | LeftOut]:
    """Pictures, or why there are none."""
    found: list[Picture | LeftOut] = []
    for name, source in entries:
        try:
            found.append(decode_picture(name, source, image_size, rules))
        except InputError as error:
            found.append(LeftOut("unreadable", error))
    return found
