"""Text from elsewhere, made harmless: shown as it is, never as markup, a picture or a link."""

import re

_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$~:&^=])")


def plain(text: object) -> str:
    """Return text for a place that reads Markdown, with all markup escaped."""
    return _MARKUP.sub(r"\\\1", str(text)).replace("\n", " ")


def number(value: float) -> str:
    """Return a number as people write it, with a real minus sign in front."""
    if value != value:
        return "–"
    size = abs(value)
    text = (
        f"{size:.2e}"
        if size and (size < 0.001 or size >= 1e5)
        else f"{size:.3f}"
        if size < 10
        else f"{size:.1f}"
    )
    return f"−{text}" if value < 0 else text
