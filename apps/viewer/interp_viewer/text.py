"""Text from elsewhere, made harmless: shown as it is, never as markup, a picture or a link."""

import re

from interp.figures.words import value_text

_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$~:&^=])")


def plain(text: object) -> str:
    """Return text for a place that reads Markdown, with all markup escaped."""
    return _MARKUP.sub(r"\\\1", str(text)).replace("\n", " ")


def number(value: float) -> str:
    """Return a number with three decimals, or one from 10 on; in powers of ten at the extremes."""
    size = abs(value)
    is_extreme = size != 0 and (size < 0.001 or size >= 1e5)
    return value_text(float(value), ".2e" if is_extreme else ".3f" if size < 10 else ".1f")
