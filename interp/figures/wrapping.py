"""Text in lines that fit, by one measure of how wide letters are."""

import textwrap
from collections.abc import Sequence

_LETTER = 0.5  # of the font's size, on average
_NEAR = 1.3  # of a name's room: how long a word may be, as letters are often narrower


def length_of(text: str, *, size: float) -> float:
    """Return about how long a text is on one line, in the unit of its font's size."""
    return _LETTER * size * len(text)


def lines_that_fit(text: str, width: float, *, size: float, most: int | None = None) -> list[str]:
    """Return a text in lines of at most `width`, broken between words; no word is cut.

    Lines that "<br>" ends stay apart. Of more than `most` lines, the last ends with "…". `width`
    and `size` have one unit.
    """
    n_letters = max(8, int(width / (_LETTER * size)))
    wrapper = textwrap.TextWrapper(
        n_letters, break_long_words=False, max_lines=most, placeholder=" …"
    )
    return [line for part in text.split("<br>") for line in wrapper.wrap(part)]


def words_in_room(names: Sequence[str], room: float, *, size: float) -> list[list[str]]:
    """Return names side by side in a room, each in lines; nothing if they cannot be told apart."""
    each = room / max(1, len(names)) - _LETTER * size
    lines = [lines_that_fit(name, each, size=size) for name in names]
    longest = max((length_of(line, size=size) for name in lines for line in name), default=0.0)
    return lines if longest <= _NEAR * each else []
