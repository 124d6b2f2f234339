"""What `interp doctor` checks: whether a checkpoint is whole, and read as what it is."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from interp.analysis import Analysis, refuse_weights
from interp.errors import InterpError, ModelError, TaskError, UnknownModelError
from interp.figures.words import counted
from interp.models import Model, load_model
from interp.models.dtypes import how_computed, name_of
from interp.models.mixers import ATTENTION
from interp.models.quantised import quantised
from interp.runs.registry import find_analyses, make_analysis
from interp.tasks.batch import TokenBatch
from interp.tasks.encoding import put_in_front
from interp.testing import Examination, examine
from interp.testing.fed import fed
from interp.testing.under_test import ModelUnderTest

Verdict = Literal["ok", "note", "failed"]
_CHECKED = (
    4  # tokens of a checked row: every check is there with few, and a pass costs by the token
)
_SHARD, _LENGTH = 32, 64  # prompts and tokens for which memory is stated
_COPIED = 1_000_000_000  # weights; larger models are not copied to fp32 (4 GB)
_NOTABLE = 0.05  # a difference of probabilities between types


@dataclass(frozen=True)
class HealthSign:
    """The outcome of one check: a "note" is worth knowing, "failed" makes numbers wrong."""

    check: str
    verdict: Verdict
    what: str


@dataclass(frozen=True)
class Diagnosis:
    """The signs of a checkpoint's health.

    `memory` says what each analysis takes for a shard of 32 prompts of 64 tokens.
    """

    model: str
    signs: tuple[HealthSign, ...]
    memory: tuple[dict[str, Any], ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Tell whether nothing failed."""
        return not any(sign.verdict == "failed" for sign in self.signs)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values."""
        return asdict(self) | {"healthy": self.is_healthy}


def diagnose(
    name: str, *, progress: Callable[[str], None] = lambda _: None, **loading: Any
) -> Diagnosis:
    """Return the diagnosis of a checkpoint, loaded as `load_model(name, **loading)`.

    Raises UnknownModelError where there is nothing to look at.
    """
    progress("loading")
    try:
        model = load_model(name, **loading)
    except UnknownModelError:
        raise
    except ModelError as error:
        return Diagnosis(name, (HealthSign("loading", "failed", str(error)),))
    n_weights = sum(parameter.numel() for parameter in model.module.parameters())
    size = (
        f"{type(model.module).__name__}, {model.n_layers} layers, d_model {model.d_model},"
        f" {n_weights / 1e6:.1f} M weights"
    )
    signs = [
        HealthSign("loading", "ok", f"{size}; none missing, unexpected, NaN or infinite"),
        dtype_sign(model),
    ]
    with torch.no_grad():
        signs += [
            *_mixers(model),
            *_quantised(model),
            *_tokenizer(model),
            *_prompts(model),
            _numbers(model),
            *_device(model),
        ]
        wide = _in_float32(model)
        signs += [*_precision(model, wide), *_contract(wide, progress)]
        return Diagnosis(name, tuple(signs), tuple(_memory(model)))


def dtype_sign(model: Model) -> HealthSign:
    """Return which type a model is computed in; a note where the checkpoint holds another."""
    made_from = getattr(model.module.config, "made_from", None)
    how = f"{made_from}: {how_computed(model)}" if made_from else how_computed(model)
    if kind := quantised(model.module):
        return HealthSign("dtype", "note", f"quantised ({kind}), {how}")
    is_own = model.checkpoint in ("", name_of(model.dtype))
    return HealthSign("dtype", "ok" if is_own and not made_from else "note", how)


def _mixers(model: Model) -> Iterator[HealthSign]:
    """Say what a model with layers other than attention, or blocks of other parts, can be asked."""
    n_of = Counter(model.mixers)
    if n_of.keys() - {ATTENTION}:
        listed = ", ".join(f"{mixer} in {counted(n, 'layer')}" for mixer, n in n_of.items())
        yield HealthSign(
            "mixers",
            "note",
            f"{listed}: blocks can be skipped, moved and run again on whole prompts, not from a"
            " position on (only attention keeps keys and values)",
        )
    wholes = {block.why_whole: block for block in model.blocks if block.why_whole}
    for why, block in wholes.items():
        yield HealthSign("blocks", "note", f"{type(block.module).__name__} runs as a whole: {why}")


def _quantised(model: Model) -> Iterator[HealthSign]:
    """Say what a model is not asked whose weights are computed with as they are stored."""
    if not quantised(model.module):
        return
    refused: dict[str, list[str]] = {}
    for name, kind in find_analyses().items():
        if kind.asks_of_weights:
            refused.setdefault(kind.asks_of_weights, []).append(name)
    listed = "; ".join(f"{asked} ({', '.join(names)})" for asked, names in refused.items())
    yield HealthSign("quantised", "note", f"refused is what needs {listed}")


def _tokenizer(model: Model) -> Iterator[HealthSign]:
    tokenizer, n_rows = model.tokenizer, model.d_vocab
    if tokenizer is None:
        yield HealthSign("tokenizer", "note", "there is none: prompts are token ids")
        return
    beyond = _beyond(model)
    if 0 < len(tokenizer) - n_rows <= len(beyond):
        text = f"the model has no row for {', '.join(beyond)}; they are never fed"
        yield HealthSign("tokenizer", "note", text)
    if why := _foreign(model):
        yield HealthSign("tokenizer", "failed", why)
        return
    ids = list(range(len(tokenizer) // 2, len(tokenizer) // 2 + 20))
    text = tokenizer.decode(ids)
    again = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    is_same = again.strip() == text.strip()
    own = "its own tokens come back" if is_same else "some of its own tokens do not come back"
    what = f"{len(tokenizer)} tokens for {n_rows} rows of W_U; {own} as they are"
    yield HealthSign("tokenizer", "ok" if is_same else "note", what)
    adds = tokenizer.bos_token is not None and put_in_front(tokenizer)[:1] == [tokenizer.bos_token]
    article = "a" if adds else "no"
    every = "every prompt" if adds else "prompts"
    yield HealthSign("BOS", "ok", f"{article} BOS token is put before {every}")


def _beyond(model: Model) -> list[str]:
    """Return the tokenizer's added tokens for which the model has no row."""
    added = model.tokenizer.added_tokens_decoder
    return [str(token) for i, token in added.items() if i >= model.d_vocab]


def _foreign(model: Model) -> str:
    """Return why the tokenizer seems to belong to another model; "" if it does not."""
    n_tokens, n_rows = len(model.tokenizer), model.d_vocab
    sizes = f"the tokenizer has {n_tokens} tokens, the model {n_rows}"
    if n_tokens - n_rows > len(_beyond(model)):
        return f"{sizes}: it belongs to another model"
    if n_tokens < 0.8 * n_rows:
        return f"{sizes}: it may belong to another model"
    config = model.module.config.get_text_config()
    for name in ("bos_token_id", "eos_token_id"):
        theirs, ours = getattr(config, name, None), getattr(model.tokenizer, name)
        expected = theirs if isinstance(theirs, list) else [theirs]
        if theirs is not None and ours is not None and ours not in expected:
            ids = f"{name} is {ours} in the tokenizer and {theirs} in config.json"
            return f"{ids}: it may belong to another model"
    return ""


def _prompts(model: Model) -> Iterator[HealthSign]:
    """Feed the model one prompt of each kind, and say what it became."""
    for kind, what in fed(model):
        yield HealthSign(kind, "ok", what)


def _numbers(model: Model) -> HealthSign:
    tested = ModelUnderTest(model, n_pos=_CHECKED)
    logits = model.logits(tested.batch)
    if not bool(torch.isfinite(logits).all()):
        return HealthSign(
            "numbers", "failed", f"logits of random tokens are NaN or infinite in {model.dtype}"
        )
    largest = float(tested.recording.resid(model.n_layers).float().norm(dim=-1).max())
    return HealthSign(
        "numbers", "ok", f"logits are finite; the stream's norm goes up to {largest:.3g}"
    )


def _device(model: Model) -> Iterator[HealthSign]:
    is_moved = model.stream is not None or getattr(model.module, "hf_device_map", None)
    if model.device.type == "cpu" or is_moved:
        return
    batch, where = ModelUnderTest(model, n_pos=8).batch, model.device
    there = model.logits(batch).cpu()
    try:
        model.module.to("cpu")
        here = model.logits(replace(batch, tokens=batch.tokens.cpu(), mask=batch.mask.cpu()))
    finally:
        model.module.to(where)
    off = float((there.softmax(-1) - here.softmax(-1)).abs().max())
    verdict: Verdict = "ok" if off < (1e-3 if model.dtype == torch.float32 else 0.05) else "failed"
    yield HealthSign(
        "device", verdict, f"probabilities on {where} and on the CPU differ by at most {off:.1e}"
    )


def _in_float32(model: Model) -> Model:
    """Return the model in fp32, where rounding hides no difference, or as it is if too large."""
    n_weights = sum(parameter.numel() for parameter in model.module.parameters())
    is_spread = len({*getattr(model.module, "hf_device_map", {}).values()}) > 1
    if (
        model.dtype == torch.float32
        or n_weights > _COPIED
        or is_spread
        or model.stream is not None
        or quantised(model.module)
    ):
        return model
    return Model(model.name, copy.deepcopy(model.module).float(), model.tokenizer)


def _precision(model: Model, wide: Model) -> Iterator[HealthSign]:
    """Return how far the model's own type moves its predictions from those in fp32."""
    if wide is model:
        return
    batch = ModelUnderTest(model, n_pos=_CHECKED).batch
    off = float((model.logits(batch).softmax(-1) - wide.logits(batch).softmax(-1)).abs().max())
    own = str(model.dtype).removeprefix("torch.")
    text = f"probabilities in {own} and in float32 differ by at most {off:.1e} on random tokens"
    yield HealthSign("precision", "ok" if off < _NOTABLE else "note", text)


def _contract(model: Model, progress: Callable[[str], None]) -> Iterator[HealthSign]:
    examination = examine(model, n_pos=_CHECKED, progress=progress)
    own = str(model.dtype).removeprefix("torch.")
    how = (
        "in float32"
        if model.dtype == torch.float32
        else f"in {own}, up to what its rounding explains"
    )
    for check in examination.failed:
        yield HealthSign(f"{check.check} ({check.aspect})", "failed", check.why)
    n_ok = sum(check.status == "ok" for check in examination.checks)
    yield HealthSign(
        "contract",
        "note" if examination.failed else "ok",
        f"{n_ok} checks against stock passes hold, {how}; {_looked_at(model, examination)}",
    )
    by_cause: dict[str, list[str]] = {}
    for check in examination.refused:
        by_cause.setdefault(check.why.partition(": ")[2] or check.why, []).append(check.check)
    for why, what in by_cause.items():
        yield HealthSign("refused", "note", f"{', '.join(dict.fromkeys(what))}: {why}")


def _looked_at(model: Model, examination: Examination) -> str:
    """Return which layers and tokens the checks of a contract looked at."""
    layers = ", ".join(map(str, examination.layers))
    return (
        f"writes and replays of all {model.n_layers} layers, places in layers {layers}"
        f" (the first, middle and last, and the first of each kind), over {_CHECKED} tokens"
    )


def _memory(model: Model) -> Iterator[dict[str, Any]]:
    """Yield the memory of each analysis, with its defaults, for prompts with twins and subjects."""
    shard = _full_shard(model)
    weights, clean = (
        model.module.get_memory_footprint(),
        4 * (3 * model.n_layers + 1) * shard.tokens.numel() * model.d_model,
    )
    for name in find_analyses():
        try:
            _refuse_unsuited(analysis := make_analysis(name, {}), model, shard)
            cost = analysis.cost(model, shard)
        except InterpError as error:
            yield {"analysis": name, "why_not": str(error)}
            continue
        held = (weights + clean + 4 * cost.held) / 1e6
        yield {
            "analysis": name,
            "memory_mb": round(held),
            "forwards": round(1 + cost.forwards, 2),
            "is_bound": cost.is_bound,
        }


def _refuse_unsuited(analysis: Analysis, model: Model, shard: TokenBatch) -> None:
    """Raise where an analysis needs what this model does not give, whatever the prompts."""
    refuse_weights(analysis, model)
    if all(block.has_kv and not block.why_whole for block in model.blocks):
        return
    if not analysis.names_other:  # another model would have to be loaded
        with suppress(TaskError):
            analysis.check(model, shard)


def _full_shard(model: Model) -> TokenBatch:
    batch = ModelUnderTest(model, batch_size=_SHARD, n_pos=_LENGTH).batch
    answer, start = batch.tokens[:, 0], torch.full((_SHARD,), _LENGTH // 2)
    return replace(
        batch,
        subject=start + 1,
        subject_start=start,
        answer=answer,
        wrong=batch.tokens[:, 1],
        bridge=batch.tokens[:, 2],
        answer_tokens=answer[:, None],
        corrupted=batch.tokens.roll(1, dims=0),
    )
