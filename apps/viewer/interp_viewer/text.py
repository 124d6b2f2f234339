"""Text from elsewhere, made harmless: shown as it is, never as markup, a picture or a link."""

import re
from collections.abc import Mapping
from typing import Any

from interp.figures.words import value_text

_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$~:&^=])")

_SHOWN = 84
NOISE = 1e-6  # what is below it is no more than rounding leaves


def plain(text: object) -> str:
    """Return text for a place that reads Markdown, with all markup escaped."""
    return _MARKUP.sub(r"\\\1", str(text)).replace("\n", " ")


def number(value: float) -> str:
    """Return a number with three decimals, or one from 10 on; in powers of ten at the extremes.

    What is no more than rounding leaves is "≈0".
    """
    size = abs(value)
    if size < NOISE:
        return "≈0" if size else "0"
    is_extreme = size < 0.001 or size >= 1e5
    return value_text(float(value), ".2e" if is_extreme else ".3f" if size < 10 else ".1f")


def shortened(text: str, most: int = _SHOWN) -> str:
    """Return a text in one line, without its middle where it is longer than `most`."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    end = most // 3
    return f"{line[: most - end - 3].rstrip()} … {line[-end:].lstrip()}"


def prompt_named(i: int, prompt: Mapping[str, Any], most: int = _SHOWN) -> str:
    """Return a prompt's number, text and answer: "3 · The capital of France is → Paris"."""
    text = shortened(str(prompt.get("text") or prompt.get("id", "")), most)
    answer = shortened(str(prompt.get("answer") or ""), most // 3)
    return f"{i} · {text}" + (f" → {answer}" if answer else "")
