"""Whether a space stands between a text and its answer: by script, and by how the text ends."""

import re
import unicodedata
from typing import Literal, get_args

from interp.errors import TaskError, unknown

Space = Literal["auto", "always", "never"]

_UNSPACED = (  # scripts written without spaces between words, with their punctuation
    ("\u0e00", "\u0fff"),  # Thai, Lao, Tibetan
    ("\u1000", "\u109f"),  # Burmese
    ("\u1780", "\u17ff"),  # Khmer
    ("\u1950", "\u19ff"),  # Tai Le, New Tai Lue, Khmer symbols
    ("\u1a20", "\u1aaf"),  # Tai Tham
    ("\u2e80", "\u312f"),  # Han radicals, their punctuation, kana, bopomofo
    ("\u31a0", "\ua4cf"),  # more bopomofo and kana, Han, Yi
    ("\ua980", "\ua9ff"),  # Javanese, more Burmese
    ("\uaa60", "\uaa7f"),  # more Burmese
    ("\uf900", "\ufaff"),  # more Han
    ("\ufe30", "\ufe4f"),  # their vertical punctuation
    ("\uff00", "\uff9f"),  # full-width forms, half-width kana
    ("\U0001b000", "\U0001b16f"),  # more kana
    ("\U00020000", "\U0003ffff"),  # more Han
)
_QUOTES = {
    "«": "»",
    "»": "«",
    "‹": "›",
    "›": "‹",
    "“": "”„",
    "”": "“„",
    "‘": "‚",
    "「": "」",
    "『": "』",
}
_CLOSING = frozenset(".,;:!?%‰…°،؛؟।॥።፣")
_JOINING = "-–—=+<>|&~^"  # with nothing behind them where nothing stands in front of them
_TAG = re.compile(r"<[^<>\s][^<>]*>$")  # markup, and the special tokens of chats
_ELISION = re.compile(
    r"(?:^|[^\w'’])(?:\w{1,2}|\w*(?:ll|[qQ]u))$"
)  # l'homme, qu'il, dell'arte, O'Neill
_CONTRACTED = re.compile(r"['’](?:(?:s|t|d|m|ll|re|ve)\b|$)", re.IGNORECASE)


def check_space(space: str) -> None:
    """Raise TaskError for a way of spacing that does not exist."""
    if space not in get_args(Space):
        raise TaskError(unknown("space", str(space), get_args(Space)))


def space_between(text: str, answer: str, space: Space = "auto") -> str:
    """Return what stands between a text and the answer behind it: one space, or nothing.

    It is nothing if either brings white space of its own. Otherwise "always" and "never" mean what
    they say, and "auto" follows writers: no space in scripts without spaces, after what opens or
    joins, before what closes, or where a number goes on.
    """
    if not text or not answer or text[-1].isspace() or answer[0].isspace() or space == "never":
        return ""
    if space == "always":
        return " "
    return (
        ""
        if _goes_on(text, answer) or _is_unspaced(text, answer) or _is_open(text, answer)
        else " "
    )


def _goes_on(text: str, answer: str) -> bool:
    """Tell whether the answer ends a number or a word, or closes what was opened."""
    if answer[0].isdigit() and re.search(r"\d[.,]?$", text):
        return True
    if answer[0] == '"':
        return text.count('"') % 2 == 1 and answer.count('"') % 2 == 1
    if answer[0] in "'’":
        return bool(_CONTRACTED.match(answer))
    if answer[0] in _CLOSING:
        return not re.match(r"\.\d", answer)
    is_quotation = any(mark in answer[1:] for mark in _QUOTES.get(answer[0], ""))
    return unicodedata.category(answer[0]) in ("Pe", "Pf") and not is_quotation


def _is_unspaced(text: str, answer: str) -> bool:
    """Tell whether text and answer are written without a space between words."""
    if _in_unspaced_script(text[-1]) or unicodedata.category(text[-1]) == "Cf":
        return True
    if not _in_unspaced_script(answer[0]):
        return False
    letters = [_in_unspaced_script(char) for char in text if char.isalpha()]
    return bool(letters) and 2 * sum(letters) >= len(letters)


def _in_unspaced_script(char: str) -> bool:
    return char >= _UNSPACED[0][0] and any(first <= char <= last for first, last in _UNSPACED)


def _is_open(text: str, answer: str) -> bool:
    """Tell whether the text ends in something that the answer follows at once."""
    last, before = text[-1], text[:-1]
    category = unicodedata.category(last)
    if last in '"`':
        return text.count(last) % 2 == 1
    if last in _QUOTES:
        others = sum(map(text.count, _QUOTES[last]))
        return others < text.count(last) if others else text.count(last) % 2 == 1
    if last in "'’":
        is_opening = not before or not (before[-1].isalnum() or before[-1] in ".,!?…")
        return is_opening or bool(_ELISION.search(before))
    if category in ("Ps", "Pi") or last in "/\\_@" or _TAG.search(text):
        return True
    if category == "Sc":
        return not re.search(r"\d\s?$", before) and (
            answer[0].isdigit() or not before[-1:].isalnum()
        )
    if last == "#":
        return bool(before.rstrip("#")) and not before[-1:].isalnum() and before[-1:] not in "#\n"
    if last == "*":
        marks = "**" if text.endswith("**") else "*"
        return text.count(marks) % 2 == 1 and before[-1:] not in ("", "\n")
    if last in _JOINING:
        in_front = text.rstrip(_JOINING)
        is_minus = (
            last in "-+" and answer[0].isdigit() and not (in_front and in_front[-1:].isdigit())
        )
        return is_minus or (bool(in_front) and not in_front[-1].isspace())
    return False
