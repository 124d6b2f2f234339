"""Where a captured corpus lies: for every site, the prompts and shards in corpus order."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from interp.store.files import Files
from interp.store.keys import is_shard, is_tensor_name
from interp.store.shard import FORMAT, UNREADABLE, DamagedError, refuse_other_format, text_checksum

SUFFIX = ".corpus.json"


class Span(NamedTuple):
    """Neighbouring prompts in one shard."""

    shard: str
    first: int
    n_prompts: int


@dataclass(frozen=True)
class Manifest:
    """The spans of every tensor name, and the number of tokens."""

    model: str
    model_name: str
    n_tokens: int
    spans: Mapping[str, tuple[Span, ...]]

    def shards(self) -> set[str]:
        """Return the names of all shards."""
        return {span.shard for spans in self.spans.values() for span in spans}


def extend(spans: list[Span], places: Iterable[tuple[str, int]]) -> None:
    """Add places, each a shard and a prompt's number in it, to spans; neighbours become one."""
    for shard, number in places:
        last = spans[-1] if spans else None
        if last is not None and (shard, number) == (last.shard, last.first + last.n_prompts):
            spans[-1] = last._replace(n_prompts=last.n_prompts + 1)
        else:
            spans.append(Span(shard, number, 1))


def write_manifest(files: Files, name: str, manifest: Manifest) -> None:
    """Publish a corpus's manifest."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "model": manifest.model,
        "model_name": manifest.model_name,
        "n_tokens": manifest.n_tokens,
        "runs": {tensor: [*map(list, spans)] for tensor, spans in manifest.spans.items()},
    }
    content["checksum"] = text_checksum(content)
    files.publish(name, json.dumps(content).encode())


def read_manifest(files: Files, name: str) -> Manifest:
    """Return a corpus's manifest; raise FileNotFoundError or DamagedError if it cannot be read."""
    path = files.path(name)
    folder = name.partition("/")[0]
    try:
        content = json.loads(files.read(name))
        expected = content.pop("checksum")
        if expected != text_checksum(content | {"format": FORMAT}):
            refuse_other_format(path, content["format"])
        if expected != text_checksum(content):
            raise ValueError
        spans = {
            tensor: tuple(Span(*one) for one in given) for tensor, given in content["runs"].items()
        }
        manifest = Manifest(content["model"], content["model_name"], content["n_tokens"], spans)
        for shard in manifest.shards():
            if not is_shard(shard) or not shard.startswith(f"{folder}/"):
                raise ValueError
        if not all(map(is_tensor_name, spans)):
            raise ValueError
    except UNREADABLE:
        raise DamagedError(f"{path} is not what was written; capture the corpus again") from None
    return manifest
