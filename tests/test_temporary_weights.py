"""Other weights inside a `with` block: all sees them, nothing keeps them, and they are gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import interp
from interp import Site
from interp.capture import capture
from interp.errors import ModelError, StoreError
from interp.interventions import Skip
from interp.models import Model, temporary_weights
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def another(model: Model, *, layer: int = 2, factor: float = 1.5) -> dict[str, Tensor]:
    """Return all matrices of a layer, larger by a factor."""
    block = model.blocks[layer]
    return {
        f"{block.name}.{name}": parameter.detach() * factor
        for name, parameter in block.module.named_parameters()
    }


@contextmanager
def edited(model: Model, weights: dict[str, Tensor]) -> Iterator[None]:
    """Write weights into the module by hand, and back."""
    named = dict(model.module.named_parameters())
    own = {name: named[name].detach().clone() for name in weights}
    with torch.no_grad():
        for name, tensor in weights.items():
            named[name].copy_(tensor)
        yield
        for name, tensor in own.items():
            named[name].copy_(tensor)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt_neox"])
@torch.no_grad()
def test_all_passes_see_them_as_if_written_into_the_module(kind: str) -> None:
    model, pattern = tiny(kind), Site("pattern", 2)
    weights = another(model)

    def seen() -> list[Tensor]:
        recording = model.record(tokens())
        inner = model.forward(tokens(), capture=[pattern])
        return [
            model.logits(tokens()),
            recording.logits(recording.resid(model.n_layers)),
            recording.logits(recording.chain(range(model.n_layers), recording.resid(0))),
            inner.logits,
            inner.activations[pattern],
            model.forward(tokens(), plan=[Skip(1)]).logits,
        ]

    clean = seen()
    with temporary_weights(model, weights):
        inside = seen()
        fingerprint = model.fingerprint
    with edited(model, weights):
        assert model.fingerprint == fingerprint
        for ours, right in zip(inside, seen(), strict=True):
            assert torch.equal(ours, right)
    assert not any(torch.equal(a, b) for a, b in zip(clean, inside, strict=True))
    for ours, right in zip(seen(), clean, strict=True):
        assert torch.equal(ours, right)


def an_exception_inside(model: Model, weights: dict[str, Tensor]) -> None:
    with temporary_weights(model, weights):
        raise KeyError("in the middle")


@torch.no_grad()
def test_the_model_is_afterwards_bit_by_bit_what_it_was() -> None:
    model = tiny("llama")
    own = [(id(p), p.detach().clone()) for p in model.module.parameters()]
    recording, fingerprint, bridge = model.record(tokens()), model.fingerprint, model.bridge
    state, resid = model.weights.state(), recording.resid(4).clone()
    with pytest.raises(KeyError):
        an_exception_inside(model, another(model))
    assert model.weights.state() == state
    with temporary_weights(model, another(model)):
        inner = model.fingerprint
        with temporary_weights(model, another(model, layer=1)):
            assert model.fingerprint not in (inner, fingerprint)
        assert model.fingerprint == inner
    assert model.weights.state() == state
    assert (model.fingerprint, model.bridge) == (fingerprint, bridge)
    for (i, values), parameter in zip(own, model.module.parameters(), strict=True):
        assert i == id(parameter)
        assert torch.equal(values, parameter)
    again = recording.chain(range(4), recording.resid(0))
    assert_close(again, resid, rtol=0, atol=0)


@torch.no_grad()
def test_recordings_of_other_weights_are_refused_both_ways() -> None:
    model = tiny("llama")
    outside = model.record(tokens())
    resid = outside.resid(0)
    with temporary_weights(model, another(model)):
        inside = model.record(tokens())
        inside.resid(2)
        for use in (
            lambda: outside.resid(0),
            lambda: outside.chain([1], resid),
            lambda: outside.logits(resid),
            lambda: outside.forward(tokens().tokens),
        ):
            with pytest.raises(ModelError, match="record anew"):
                use()
        with (
            temporary_weights(model, another(model, layer=1)),
            pytest.raises(ModelError, match="record anew"),
        ):
            inside.resid(0)
        inside.resid(0)
    with pytest.raises(ModelError, match="record anew"):
        inside.resid(0)
    outside.resid(0)


@torch.no_grad()
def test_a_recording_with_other_weights_counts_its_work_and_is_exact() -> None:
    model = tiny("llama")
    recording = model.record(tokens())
    resid, weights = recording.resid(2), another(model)
    before = recording.work.block_tokens
    with recording.with_weights(weights) as other:
        logits = other.logits(other.chain([2, 3], resid))
        with pytest.raises(ModelError, match="record anew"):
            recording.resid(2)
    assert recording.work.block_tokens - before == 2 * tokens().tokens.numel()
    with temporary_weights(model, weights):
        assert_close(model.logits(tokens()), logits)


@torch.no_grad()
def test_nothing_is_stored_inside_and_nothing_stored_is_read(tmp_path: Path) -> None:
    model = interp.load_model(tiny("llama").module, store=tmp_path)
    clean = model.record(tokens()).resid(4)

    def files() -> list[Path]:
        return sorted(tmp_path.rglob("*.safetensors"))

    stored = files()
    assert stored
    with temporary_weights(model, another(model)):
        assert not torch.equal(model.record(tokens()).resid(4), clean)
        with pytest.raises(StoreError, match="temporary"):
            capture(model, [[1, 2, 3]], sites=[Site("resid_pre", 1)], name="mine")
    assert files() == stored
    assert torch.equal(model.record(tokens()).resid(4), clean)


def test_weights_that_do_not_fit_are_refused() -> None:
    model = tiny("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    own = model.module.get_parameter(name)
    for weights, why in (
        ({"model.layers.1.mlp.up_prog.weight": own}, "near it there is 'model.layers.1.mlp.up_pro"),
        ({name: own[:-1]}, "shape"),
        ({name: own.half()}, "float16"),
    ):
        with pytest.raises(ModelError, match=why), temporary_weights(model, weights):
            pass


def test_tied_shared_and_absent_parameters_are_refused() -> None:
    model = interp.load_model("zoo/hops-4l")
    module = model.module
    up, down = (module.model.layers[i].mlp.up_proj for i in (0, 1))
    name = "model.layers.0.mlp.up_proj.weight"
    embedding = "model.embed_tokens.weight"
    if module.config.tie_word_embeddings:
        with (
            pytest.raises(ModelError, match=r"tied to 'lm_head\.weight'"),
            temporary_weights(model, {embedding: module.get_parameter(embedding)}),
        ):
            pass
    up.weight = nn.Parameter(down.weight.detach(), requires_grad=False)
    with (
        pytest.raises(ModelError, match=r"shares memory with 'model.layers.1"),
        temporary_weights(model, {name: torch.zeros_like(up.weight)}),
    ):
        pass
    up.weight = nn.Parameter(up.weight.detach().to("meta"), requires_grad=False)
    with (
        pytest.raises(ModelError, match="offloaded"),
        temporary_weights(model, {name: torch.zeros(up.weight.shape)}),
    ):
        pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_too(dtype: torch.dtype) -> None:
    model = interp.load_model("zoo/hops-4l", dtype=dtype)
    batch = model.tokenize(interp.load_task("two-hop", n=2).prompts)
    clean = model.logits(batch)
    with temporary_weights(model, another(model)):
        assert not torch.equal(model.logits(batch), clean)
    assert torch.equal(model.logits(batch), clean)
