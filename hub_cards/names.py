"""Names that are published: of classes and of sites. One rule holds from the first loading of tiles to the cards."""

from __future__ import annotations

import re
import unicodedata


#: The most characters of a name, and of a word in it, for nobody reads longer ones.
LONGEST_NAME, LONGEST_WORD = 100, 40
# Letters and digits of any script, and punctuation that a name may have. A slash or a colon stands once between words,
# so that no address and no path is a name; < and > stand before a number or a space, so that no name is HTML.
_PARTS = re.compile(r"(?:[^\W_]|[ _.,;()\[\]+&%'’=#°≤≥×·–!?-]|(?<=\w)/(?=\w)|:(?= )|[<>](?=[ =\d]))+")
# Characters that str.isprintable lets through and that are not seen: Default_Ignorable_Code_Point of Unicode.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
# How the Hub writes the identifiers of licences.
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
# Where a word ends.
_GAPS = re.compile(r"[\s_-]+")


def fault_of_published_name(name: str) -> str | None:
    """What is wrong with a name, as the end of `which has …`; None for a plain one.

    A plain name is written with letters, digits, spaces and plain punctuation, on one line, composed (NFC), short.
    """
    if not isinstance(name, str) or not name.strip():
        return "no letters"
    if not name.isprintable() or _UNSEEN.search(name):
        return "characters that are not seen"
    if unicodedata.normalize("NFC", name) != name:
        return "accents apart from their letters (no NFC)"
    if name != name.strip():
        return "a space at its beginning or end"
    if len(name) > LONGEST_NAME:
        return f"more than {LONGEST_NAME} characters"
    if any(len(word) > LONGEST_WORD for word in _GAPS.split(name)):
        return f"a word of more than {LONGEST_WORD} characters"
    # Marks, such as the vowels of Thai, belong to the letters before them.
    letters = "".join(sign for sign in name if unicodedata.category(sign) not in ("Mn", "Mc"))
    if not _PARTS.fullmatch(letters):
        plain = _PARTS.match(letters)
        sign = letters[plain.end() if plain else 0]
        return f"other signs ({sign}) than letters, digits, spaces and plain punctuation"
    return None


def is_license_id(text: str) -> bool:
    """Whether a text is written as the Hub writes the identifiers of licences, such as cc-by-4.0."""
    return len(text) <= LONGEST_NAME and bool(_LICENSE.fullmatch(text))
