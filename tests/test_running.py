"""A user's own module: as it was after everything, and what is computed is of it as it is now."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

import interp
from interp import Site
from interp.analyses.layer_skip import LayerSkip
from interp.analyses.logit_lens import LogitLens
from interp.backward import GRADIENT, RELP
from interp.errors import InterpError, ModelError, SiteError
from interp.interventions import Skip
from interp.models import Model
from tests.families import tokens

SIZE = {"vocab_size": 97, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}


def mine(seed: int = 0, *, dropout: float = 0.3) -> PreTrainedModel:
    torch.manual_seed(seed)
    rates = {"resid_pdrop": dropout, "attn_pdrop": dropout, "embd_pdrop": dropout}
    module = GPT2LMHeadModel(GPT2Config(**SIZE, **rates, bos_token_id=1, eos_token_id=2))
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def in_training() -> PreTrainedModel:
    """A module in training: some layers frozen, one in eval mode, hooked, with gradients."""
    module = mine().train()
    module.transformer.h[0].requires_grad_(False)
    module.transformer.h[1].eval()
    module.transformer.h[2].register_forward_hook(observe)
    module.transformer.h[2].register_full_backward_hook(lambda *_: None)
    module.transformer.h[3].register_forward_pre_hook(observe, with_kwargs=True)
    module(tokens().tokens).logits.sum().backward()
    return module


def observe(*_: Any) -> None: ...


def state(module: nn.Module) -> list[Any]:
    parameters = [(id(p), p.requires_grad, p.detach().clone(), p.grad) for p in module.parameters()]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (
            m.training,
            [dict(getattr(m, name)) for name in hooks],
            vars(m).get("forward"),
            m._compiled_call_impl,
        )
        for m in module.modules()
    ]
    return [parameters, modules, torch.is_grad_enabled()]


def same(before: list[Any], after: list[Any]) -> bool:
    values = all(
        torch.equal(a[2], b[2]) and a[3] is b[3] for a, b in zip(before[0], after[0], strict=True)
    )
    others = [[row[:2] for row in each[0]] for each in (before, after)]
    return values and others[0] == others[1] and before[1:] == after[1:]


def fails(*_: Any) -> Tensor:
    raise ValueError("in the middle of a pass")


def an_exception_in_a_pass(model: Model) -> None:
    handle = model.module.transformer.h[1].register_forward_pre_hook(fails)
    with pytest.raises(ValueError, match="in the middle"):
        model.forward(tokens(), capture=[Site("pattern", 1)])
    with pytest.raises(ValueError, match="in the middle"):
        model.record(tokens()).resid(2)
    handle.remove()


def no_such_place(model: Model) -> None:
    with pytest.raises(SiteError):
        model.forward(tokens(), capture=[Site("z", 9)])


USES: dict[str, Callable[[Model], object]] = {
    "logits": lambda model: model.logits(tokens()),
    "a recording": lambda model: model.record(tokens()).resid(4),
    "skips": lambda model: LayerSkip().measure(model.record(tokens()), tokens(), {}),
    "a lens": lambda model: LogitLens().measure(model.record(tokens()), tokens(), {}),
    "a captured pattern": lambda model: model.forward(tokens(), capture=[Site("pattern", 1)]),
    "an edit": lambda model: model.forward(tokens(), plan=[Skip(2, "mlp")]),
    "gradients": lambda model: model.forward(tokens(), backward=GRADIENT).logits,
    "relevance": lambda model: model.refuse_rules(RELP),
    "the bridge": lambda model: model.bridge,
    "generation": lambda model: model.generate(tokens(), max_new_tokens=3),
    "a part of a block": (
        lambda model: model.record(tokens()).mlp(1, model.record(tokens()).resid(1))
    ),
    "a place that is not there": no_such_place,
    "an exception in a pass": an_exception_in_a_pass,
}


@pytest.mark.parametrize("use", USES)
def test_a_module_in_training_is_afterwards_as_it_was(use: str) -> None:
    module = in_training()
    before = state(module)
    model = interp.load_model(module)
    assert same(before, state(module))
    USES[use](model)
    assert same(before, state(module))
    module(tokens().tokens).logits.sum().backward()  # training goes on


def test_a_module_that_cannot_be_loaded_is_as_it_was() -> None:
    module = in_training()
    module.transformer.ln_f = nn.Identity()
    module.transformer.h[1].mlp.register_forward_hook(lambda *given: given[-1] * 2)
    before = state(module)
    with pytest.raises(ModelError):
        interp.load_model(module)
    assert same(before, state(module))


@pytest.mark.parametrize("part", [None, "transformer.h.2", "transformer.h.1.mlp.dropout"])
def test_dropout_is_off_whatever_is_in_training(part: str | None) -> None:
    module = mine()
    model = interp.load_model(module.eval())
    right = model.logits(tokens())
    (module if part is None else module.get_submodule(part)).train()
    recording = model.record(tokens())
    torch.testing.assert_close(model.logits(tokens()), right)
    torch.testing.assert_close(recording.logits(recording.resid(4)), right)
    torch.testing.assert_close(
        recording.logits(recording.chain(range(4), recording.resid(0))), right
    )


def compiled_in_place(module: PreTrainedModel) -> nn.Module:
    module.compile(backend="eager")
    return module


def compiled_by_layer(module: PreTrainedModel) -> nn.Module:
    for block in module.transformer.h:
        block.compile(backend="eager")
    return module


def compiled_forward(module: PreTrainedModel) -> nn.Module:
    module.forward = torch.compile(module.forward, backend="eager")
    return module


def compiled_and_wrapped(module: PreTrainedModel) -> nn.Module:
    return torch.compile(module, backend="eager")


@pytest.mark.parametrize(
    "way", [compiled_in_place, compiled_by_layer, compiled_forward, compiled_and_wrapped]
)
@pytest.mark.filterwarnings("ignore")
def test_edits_reach_a_compiled_module(way: Callable[[PreTrainedModel], nn.Module]) -> None:
    plan = [Skip(2, "mlp"), Skip(1)]
    right = interp.load_model(mine().eval()).forward(tokens(), plan=plan).logits
    module = way(mine().eval())
    module(tokens().tokens)
    before = state(module)
    torch.testing.assert_close(interp.load_model(module).forward(tokens(), plan=plan).logits, right)
    assert same(before, state(module))


def doubles(_module: nn.Module, _args: Any, output: Any) -> Any:
    return (output[0] * 2, *output[1:]) if isinstance(output, tuple) else output * 2


def adds_in_place(_module: nn.Module, _args: Any, output: Any) -> None:
    (output[0] if isinstance(output, tuple) else output).add_(1)


def through_data(_module: nn.Module, _args: Any, output: Any) -> None:
    (output[0] if isinstance(output, tuple) else output).data.mul_(0.5)


def shifts(_module: nn.Module, args: Any) -> Any:
    return (args[0] + 1, *args[1:])


@pytest.mark.parametrize("hook", [doubles, adds_in_place, through_data, shifts])
@pytest.mark.parametrize("place", ["transformer.h.1", "transformer.h.2.mlp", "transformer.ln_f"])
def test_a_hook_that_changes_the_pass_is_refused_by_name(
    hook: Any, place: str, tmp_path: Path
) -> None:
    module = mine().eval()
    model = interp.load_model(module, store=tmp_path)
    at = module.get_submodule(place)
    (at.register_forward_pre_hook if hook is shifts else at.register_forward_hook)(hook)
    recording = model.record(tokens())
    for use in (
        lambda: model.logits(tokens()),
        lambda: recording.logits(recording.resid(4)),
        lambda: model.forward(tokens(), capture=[Site("pattern", 0)]),
        lambda: model.forward(tokens(), backward=GRADIENT),
        lambda: model.generate(tokens(), max_new_tokens=1),
        lambda: interp.load_model(module),
    ):
        with pytest.raises(ModelError, match=f"{hook.__name__} on .*{place}"):
            use()
    if place != "transformer.ln_f":
        assert not [*tmp_path.rglob("*.safetensors")]


def test_a_hook_on_every_module_is_refused_too() -> None:
    model = interp.load_model(mine().eval())
    handle = nn.modules.module.register_module_forward_hook(doubles)
    try:
        with pytest.raises(ModelError, match="doubles on every module"):
            model.logits(tokens())
    finally:
        handle.remove()


def test_a_hook_that_only_looks_is_called_and_nothing_is_off() -> None:
    module, seen = mine().eval(), []
    right = interp.load_model(module).forward(tokens(), plan=[Skip(1)]).logits
    module.transformer.h[3].register_forward_hook(lambda *_: seen.append(1))
    module.transformer.h[1].register_forward_hook(lambda _m, _a, output: output)
    module.transformer.h[1].register_forward_pre_hook(
        lambda _m, args, kwargs: (args, kwargs), with_kwargs=True
    )
    module.transformer.h[2].ln_1.register_forward_pre_hook(lambda _m, args: args[0])
    model = interp.load_model(module)
    seen.clear()
    torch.testing.assert_close(model.forward(tokens(), plan=[Skip(1)]).logits, right)
    assert seen


def test_nothing_is_kept_while_a_forward_is_replaced(tmp_path: Path) -> None:
    module = mine().eval()
    model = interp.load_model(module, store=tmp_path)
    model.record(tokens()).resid(4)
    block = module.transformer.h[2]
    stock = block.mlp.forward
    block.mlp.forward = lambda x: 2 * stock(x)
    n_shards = len([*tmp_path.rglob("*.safetensors")])
    hooked: list[Tensor] = []
    block.register_forward_hook(
        lambda _m, _a, output: hooked.append(output[0] if isinstance(output, tuple) else output)
    )
    model.logits(tokens())
    torch.testing.assert_close(model.record(tokens()).resid(3), hooked[0])
    assert len([*tmp_path.rglob("*.safetensors")]) == n_shards


@pytest.mark.parametrize(
    "around",
    [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), torch.enable_grad],
)
def test_what_is_around_a_call_does_not_matter(around: Callable[[], Any]) -> None:
    model = interp.load_model(mine().eval())
    right, skipped = model.logits(tokens()), model.forward(tokens(), plan=[Skip(1)]).logits
    with around():
        assert torch.equal(model.logits(tokens()), right)
        assert torch.equal(model.forward(tokens(), plan=[Skip(1)]).logits, skipped)
        recording = model.record(tokens())
        assert torch.equal(recording.logits(recording.resid(4)), right)


# Weights as they are now


def zeroed(module: PreTrainedModel) -> None:
    with torch.no_grad():
        module.transformer.h[1].mlp.c_proj.weight.zero_()


def trained(module: PreTrainedModel) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(tokens().tokens).logits.pow(2).mean().backward()
    optimizer.step()


def through_data_of_one(module: PreTrainedModel) -> None:
    module.transformer.h[0].attn.c_attn.weight.data[3, 5] += 1


def swapped_rows(module: PreTrainedModel) -> None:
    weight = module.transformer.h[1].mlp.c_fc.weight.data
    weight.copy_(weight.flip(0))


def another_tensor(module: PreTrainedModel) -> None:
    module.transformer.h[2].ln_1.weight = nn.Parameter(torch.zeros(32))


def other_data(module: PreTrainedModel) -> None:
    module.transformer.h[2].attn.c_attn.weight.data = torch.zeros_like(
        module.transformer.h[2].attn.c_attn.weight
    )


def loaded_again(module: PreTrainedModel) -> None:
    module.load_state_dict(mine(1).state_dict())


def configured(module: PreTrainedModel) -> None:
    module.config.layer_norm_epsilon = 0.5
    for norm in (each for each in module.modules() if isinstance(each, nn.LayerNorm)):
        norm.eps = 0.5


CHANGES = [
    zeroed,
    trained,
    through_data_of_one,
    swapped_rows,
    another_tensor,
    other_data,
    loaded_again,
    configured,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_store_does_not_answer_for_weights_that_were_changed(
    change: Callable[[PreTrainedModel], None], tmp_path: Path
) -> None:
    module = mine().eval()
    model = interp.load_model(module, store=tmp_path)
    before, site = model.fingerprint, Site("resid_post", 3)
    old = model.record(tokens()).clean(site)
    change(module)
    new = model.record(tokens()).clean(site)
    right = interp.load_model(module).forward(tokens(), capture=[site]).activations[site]
    torch.testing.assert_close(new, right)
    assert not torch.allclose(new, old)
    assert model.fingerprint != before
    assert torch.equal(model.record(tokens()).clean(site), new)


@pytest.mark.parametrize("change", CHANGES)
def test_the_bridge_is_of_the_weights_as_they_are(
    change: Callable[[PreTrainedModel], None],
) -> None:
    module, site = mine().eval(), Site("z", 3)
    model = interp.load_model(module)
    model.forward(
        tokens(), capture=[site]
    )  # GPT-2's queries, keys and values are split into copies
    change(module)
    ours = model.forward(tokens(), capture=[site])
    torch.testing.assert_close(ours.logits, model.logits(tokens()), atol=2e-5, rtol=1e-5)


def test_a_recording_of_other_weights_is_refused() -> None:
    module = mine().eval()
    recording = interp.load_model(module).record(tokens())
    resid = recording.resid(2)
    zeroed(module)
    for use in (
        lambda: recording.resid(2),
        lambda: recording.block(1, resid),
        lambda: recording.kv(0),
    ):
        with pytest.raises(ModelError, match="have changed since this recording was begun"):
            use()


def test_modules_that_were_replaced_are_refused() -> None:
    module = mine().eval()
    model = interp.load_model(module)
    module.transformer.h[1] = mine(1).transformer.h[1]
    with pytest.raises(ModelError, match="replaced"):
        model.record(tokens())


def test_equal_weights_have_one_fingerprint(tmp_path: Path) -> None:
    one, module = interp.load_model(mine()), mine()
    assert interp.load_model(module).fingerprint == one.fingerprint
    module.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (
        interp.load_model(again).fingerprint
        == interp.load_model(AutoModelForCausalLM.from_pretrained(tmp_path)).fingerprint
    )
    zeroed(again)
    assert interp.load_model(again).fingerprint != one.fingerprint


# What is given with a module


def test_a_type_or_device_that_a_module_does_not_have_is_refused() -> None:
    module = mine()
    assert interp.load_model(module, dtype="float32", device="cpu").dtype == torch.float32
    with pytest.raises(ModelError, match=r"bfloat16.*float32"):
        interp.load_model(module, dtype="bfloat16")
    with pytest.raises(ModelError, match="meta"):
        interp.load_model(module, device="meta")
    for given in ({"revision": "main"}, {"device_map": "auto"}):
        with pytest.raises(ModelError, match="by name"):
            interp.load_model(module, **given)


def test_a_bridge_keeps_its_store_its_mode_and_its_hooks(tmp_path: Path) -> None:
    bridge = interp.load_model(mine().eval()).bridge.train()
    bridge.blocks[1].mlp.hook_post.add_hook(lambda activation, hook: None, is_permanent=True)
    hooks = len(bridge.blocks[1].mlp.hook_post.fwd_hooks)
    model = interp.load_model(bridge, store=tmp_path)
    model.record(tokens()).resid(2)
    model.forward(tokens(), capture=[Site("pattern", 1)])
    assert [*tmp_path.rglob("*.safetensors")]
    assert bridge.training
    assert len(bridge.blocks[1].mlp.hook_post.fwd_hooks) == hooks
    with pytest.raises(InterpError, match="dtype='float16'"):
        interp.load_model(bridge, dtype="float16")
