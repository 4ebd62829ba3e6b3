"""Names of classes, files and sources: what is refused in one, and when two are the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from histodistill.hub_cards.names import LONGEST_NAME, fault_of_published_name
from histodistill.training.running.errors import InputError, one_line
from histodistill.training.running.notes import warn


# What an id on the Hub looks like: user/name.
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Characters of a name from outside that a message shows, and names of a list.
_SHOWN, _LISTED = 80, 5


def numbered_classes(count: int) -> list[str]:
    """What classes are called that nobody has given names: "class 0", "class 1", …"""
    return [f"class {number}" for number in range(count)]


def fault_of_name(name: str) -> str | None:
    """What a name of a class, file or folder has in it that is no text; None if there is nothing.

    Such names can be neither printed nor written into the files of a run.
    """
    if name.isprintable():
        return None
    categories = {unicodedata.category(character) for character in name}
    if "Cs" in categories:  # how Python shows bytes of a file's name that are no UTF-8
        return "bytes that are no UTF-8"
    if categories & {"Cc", "Co", "Zl", "Zp"}:
        return "control characters"
    return None


def can_be_hub_id(text: str) -> bool:
    """Whether a text has the form of an id on the Hub, user/name; a path may have it, too."""
    return bool(_HUB_ID.fullmatch(text))


def shown(text: str) -> str:
    """A name from outside as messages show it: of one line, and no longer than they can bear."""
    text = one_line(text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def some(names: Sequence[str]) -> str:
    """The first of some names, as messages list them."""
    return ", ".join([*map(shown, names[:_LISTED]), *(["…"] if len(names) > _LISTED else [])])


def class_name(name: str) -> str:
    """The one spelling of a class's name: letters with their accents as single characters (NFC), no space around it.

    macOS may spell `ü` as `u` and a mark, other systems as one letter, and both look the same.
    """
    return unicodedata.normalize("NFC", name).strip()


def checked_class_names(source: str, names: Sequence[str]) -> list[str]:
    """The names of a source's classes in their one spelling; warns where two differ in little.

    Args:
        source: What messages call the source.
        names: The name of each label.

    Raises:
        InputError: A name that could not be published, see `fault_of_published_name`, or the same as another.
    """
    spelled = []
    for name in map(str, names):
        spelled.append(class_name(name))
        # What cannot be published is refused now, not after all trainings.
        if fault := fault_of_name(name) or fault_of_published_name(spelled[-1]):
            raise InputError(f"{source} has the class {one_line(name)[:LONGEST_NAME]!r} with {fault}: rename it")
    like: dict[str, str] = {}
    for name in spelled:
        other = like.setdefault(_skeleton(name), name)
        if other != name:
            warn(f"{source} has classes {other!r} and {name!r}: if they are one, give them one name")
    if len(set(spelled)) < len(spelled):
        raise InputError(f"{source} names two classes alike: class names must differ ({', '.join(spelled)})")
    return spelled


def _skeleton(name: str) -> str:
    """What is left of a name without case, marks that do not show, and kinds and numbers of spaces."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_]+", " ", "".join(c for c in folded if unicodedata.category(c) != "Cf"))
