"""Captures and edits equal hand-written torch hooks on the stock model, or are refused with a
reason.
"""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from interp.backward import GRADIENT, RELP, Rules
from interp.errors import ModelError, SiteError
from interp.interventions import Ablate, Among, Patch, Skip, Steer
from interp.models import Model
from interp.models.gradients import graph, slopes
from interp.replay import first
from interp.sites import BLOCK_KINDS, Site, SiteKind
from interp.tasks.batch import TokenBatch
from tests.families import stock_logits, tiny, tokens
from tests.test_layer_skip import skipping

pytestmark = pytest.mark.filterwarnings("ignore")
LAYER = 1


def hooked(model: Model, batch, module: torch.nn.Module, edit) -> torch.Tensor:
    def hook(_module, _args, output):
        new = edit(first(output).clone())
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(hook)
    try:
        return stock_logits(model, batch)
    finally:
        handle.remove()


def sites_of(model: Model) -> list[Site]:
    is_parallel = model.blocks[LAYER].is_parallel
    return [Site(kind, LAYER) for kind in BLOCK_KINDS if not (kind == "resid_mid" and is_parallel)]


@torch.no_grad()
def test_captures_are_what_the_recording_says(model: Model) -> None:
    batch = tokens()
    done = model.forward(batch, capture=sites_of(model))
    recording = model.record(batch)
    for site, activation in done.activations.items():
        assert_close(activation, recording.clean(site), rtol=0, atol=1e-5)
    assert_close(done.logits, model.logits(batch), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("part", ["layer", "attention", "mlp"])
def test_a_skip_equals_the_hook(model: Model, part: str) -> None:
    batch = tokens()
    done = model.forward(batch, plan=[Skip(LAYER, part, positions=range(1, 7))])
    last = skipping(model, batch, LAYER, part, before=7)[-1]
    assert_close(done.logits, model.unembed(last), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["resid_post", "attn_out", "mlp_out"])
def test_edits_equal_the_hook(model: Model, kind: str) -> None:
    batch, block = tokens(), model.blocks[LAYER]
    module = {"resid_post": block.module, "attn_out": block.attn_write, "mlp_out": block.mlp_write}[
        kind
    ]
    value, site = torch.randn(3, 2, model.d_model), Site(kind, LAYER)

    def patched(out: torch.Tensor) -> torch.Tensor:
        out[:, [2, 5]] = value
        return out

    def steered(out: torch.Tensor) -> torch.Tensor:
        out[torch.arange(3), torch.tensor([1, 4, 9])] += 2 * value[0, 0]
        return out

    def resampled(out: torch.Tensor) -> torch.Tensor:
        return torch.stack([out[1], out[2], out[0]])

    for plan, edit in (
        (Patch(site, value, positions=[2, 5]), patched),
        (Steer(site, value[0, 0], scale=2.0, positions=torch.tensor([1, 4, 9])), steered),
        (Ablate(site, by="resample"), resampled),
        (Ablate(site), torch.zeros_like),
        (
            Ablate(site, by="mean"),
            lambda out: sum(out[i, j] for i in range(3) for j in range(12)) / 36 + 0 * out,
        ),
    ):
        ours = model.forward(batch, plan=[plan]).logits
        assert_close(ours, hooked(model, batch, module, edit), rtol=0, atol=1e-5)


@torch.no_grad()
def test_editing_the_middle_reaches_both_the_mlp_and_the_stream(model: Model) -> None:
    site = Site("resid_mid", LAYER)
    if model.blocks[LAYER].is_parallel:
        with pytest.raises(SiteError, match="does not exist"):
            model.forward(tokens(), capture=[site])
        return
    recording = model.record(tokens())
    mid = recording.clean(site) + 1
    last = recording.chain(range(LAYER + 1, model.n_layers), mid + recording.mlp(LAYER, mid))
    ours = model.forward(tokens(), plan=[Steer(site, torch.ones(model.d_model))]).logits
    assert_close(ours, recording.logits(last), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_bridge_agrees_with_the_stock_modules(model: Model) -> None:
    batch = tokens()
    plan = [
        Skip(2, "attention", positions=[3]),
        Steer(Site("resid_pre", 1), torch.ones(model.d_model)),
    ]
    stock = model.forward(batch, plan=plan, capture=[Site("resid_post", 3)])
    through = model.forward(batch, plan=plan, capture=[Site("resid_post", 3), Site("pattern", 0)])
    assert_close(through.logits, stock.logits, rtol=0, atol=1e-5)
    assert_close(
        through.activations[Site("resid_post", 3)],
        stock.activations[Site("resid_post", 3)],
        rtol=0,
        atol=1e-5,
    )
    assert_close(through.activations[Site("pattern", 0)].sum(-1), torch.ones(3, model.n_heads, 12))


@torch.no_grad()
def test_a_silenced_head_equals_a_hook_on_the_output_projection(model: Model) -> None:
    batch, head = tokens(), 2
    attn = model.blocks[LAYER].attn
    names = ("o_proj", "c_proj", "dense")
    projection = next(getattr(attn, name) for name in names if hasattr(attn, name))

    def silence(_module, args):
        z = args[0].unflatten(-1, (model.n_heads, -1)).clone()
        z[:, :, head] = 0
        return (z.flatten(-2), *args[1:])

    handle = projection.register_forward_pre_hook(silence)
    try:
        expected = stock_logits(model, batch)
    finally:
        handle.remove()
    ours = model.forward(batch, plan=[Ablate(Site("z", LAYER), units=[head])]).logits
    assert_close(ours, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_positions_of_a_pattern_are_queries_and_units_are_heads() -> None:
    model, site = tiny("llama"), Site("pattern", LAYER)
    clean = model.forward(tokens(), capture=[site]).activations[site]
    for value in (torch.tensor(0.0), torch.zeros(3, 1, 2, 12)):
        plan = [Patch(site, value, positions=[3, 5], units=[2])]
        found = model.forward(tokens(), plan=plan, capture=[site]).activations[site]
        expected = clean.clone()
        expected[:, 2, [3, 5]] = 0
        assert_close(found, expected)


def test_a_mean_is_over_prompts_and_positions_and_of_patterns_over_prompts_and_queries() -> None:
    resid = torch.tensor(
        [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [11.0, 0.0]]]
    )  # 2 prompts, 2 positions
    assert Ablate(Site("resid_pre", 0), "mean").edit(resid).tolist() == [[[5.0, 3.0]] * 2] * 2
    # 2 prompts, 2 heads, 2 queries, 2 keys
    pattern = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.1, 0.9]]],
                            [[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [0.4, 0.6]]]])  # fmt: skip
    found = Ablate(Site("pattern", 0), "mean").edit(pattern)
    assert_close(found[:, 0], torch.tensor([0.6875, 0.3125]).expand(2, 2, 2))
    assert_close(found[:, 1], torch.tensor([0.625, 0.375]).expand(2, 2, 2))
    only = Ablate(Site("pattern", 0), "mean", units=[1], positions=[1]).edit(pattern)
    assert_close(only[:, 0], pattern[:, 0])
    assert only[0, 1].flatten().tolist() == pytest.approx([1.0, 0.0, 0.625, 0.375])
    z = torch.tensor([[[[1.0], [10.0]]], [[[3.0], [30.0]]]])  # 2 prompts, 1 position, 2 heads
    assert Ablate(Site("z", 0), "mean").edit(z).flatten().tolist() == [2.0, 20.0, 2.0, 20.0]
    half = torch.full((2, 40_000, 1), 60_000.0, dtype=torch.float16)
    assert bool((Ablate(Site("resid_pre", 0), "mean").edit(half) == 60_000).all())
    with pytest.raises(SiteError, match="hidden keys have the score -inf"):
        Ablate(Site("attn_scores", 0), "mean")


def test_padding_is_in_no_mean() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    resid = torch.tensor([[[1.0], [3.0]], [[5.0], [torch.nan]]])
    assert (
        Among(Ablate(Site("mlp_out", 0), "mean"), mask).edit(resid).flatten().tolist() == [3.0] * 4
    )
    pattern = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]], [[[1.0, 0.0], [7.0, 7.0]]]])
    found = Among(Ablate(Site("pattern", 0), "mean"), mask).edit(pattern)
    assert_close(found[0, 0, 0], torch.tensor([2.5 / 3, 0.5 / 3]))
    with pytest.raises(SiteError, match="prompt 0 is longer than the next"):
        Among(Ablate(Site("mlp_out", 0), "resample"), mask)
    rolled = Among(Ablate(Site("mlp_out", 0), "resample", positions=[0]), mask).edit(resid)
    assert rolled[:, 0, 0].tolist() == [5.0, 1.0]


@torch.no_grad()
@pytest.mark.parametrize(
    "site", [Site("attn_out", LAYER), Site("z", LAYER), Site("pattern", LAYER)], ids=str
)
def test_a_padded_batch_has_the_means_of_its_own_tokens(site: Site) -> None:
    model, batch, lengths = tiny("llama"), tokens(), [12, 5, 8]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    padded = replace(batch, mask=mask, tokens=torch.where(mask, batch.tokens, 0))
    done = model.forward(padded, plan=[Ablate(site, "mean")], capture=[site]).activations[site]
    rows = [
        TokenBatch(batch.prompts[:1], batch.tokens[[i], :n], mask[[i], :n], torch.tensor([n - 1]))
        for i, n in enumerate(lengths)
    ]
    alone = [model.forward(row, capture=[site]).activations[site][0] for row in rows]
    if site.kind == "pattern":
        alone = [
            torch.cat([a, a.new_zeros(*a.shape[:2], 12 - a.shape[2])], -1).transpose(0, 1)
            for a in alone
        ]
    mean = torch.cat(alone).sum(0) / 25
    found = done[1].transpose(0, 1) if site.kind == "pattern" else done[1]
    assert_close(found[2], mean, rtol=0, atol=1e-5)
    assert torch.isfinite(
        model.generate(padded, max_new_tokens=3, plan=[Ablate(site, "mean")]).logits
    ).all()


def test_gradients_flow_to_every_captured_residual(model: Model) -> None:
    batch = tokens()
    sites = sites_of(model)
    done = model.forward(batch, capture=sites, backward=GRADIENT)
    done.logits[:, -1, 5].sum().backward(inputs=list(done.activations.values()))
    gradient = done.activations[Site("resid_post", LAYER)].grad
    assert gradient is not None
    direction = torch.randn_like(gradient)
    direction /= direction.norm()
    step = 1e-2

    def metric(sign: float) -> float:
        clean = done.activations[Site("resid_post", LAYER)].detach()
        plan = [Patch(Site("resid_post", LAYER), clean + sign * step * direction)]
        return model.forward(batch, plan=plan).logits[:, -1, 5].sum().item()

    slope = (metric(1) - metric(-1)) / (2 * step)
    assert slope == pytest.approx((gradient * direction).sum().item(), abs=2e-3)
    assert all(activation.grad is not None for activation in done.activations.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda mode: mode.__name__
)
@pytest.mark.parametrize("rules", [GRADIENT, RELP], ids=lambda rules: rules.name)
def test_half_precision_has_gradients_in_any_mode(
    dtype: torch.dtype, mode: type, rules: Rules
) -> None:
    model, site = (
        Model("half", copy.deepcopy(tiny("llama").module).to(dtype)),
        Site("resid_post", LAYER),
    )
    wide = tiny("llama").forward(tokens(), capture=[site], backward=rules)
    (expected,) = slopes(wide.logits[:, 8, 5], [wide.activations[site]])
    with mode():
        batch = tokens()
        padded = replace(batch, mask=torch.arange(12) < torch.tensor([12, 12, 9])[:, None])
        for given in (batch, padded):
            done = model.forward(given, capture=[site], backward=rules)
            with graph():
                value = done.logits[:, 8, 5]
            (found,) = slopes(value, [done.activations[site]])
    assert found.dtype == torch.float32
    near = torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert near > 0.999


def test_gradients_too_small_for_fp16_are_kept() -> None:
    leaf = torch.ones(3, dtype=torch.float16, requires_grad=True)
    (found,) = slopes((leaf * 1e-4).float() * torch.tensor([1e-5, 3e-5, 0.0]), [leaf])
    assert_close(found, torch.tensor([1e-9, 3e-9, 0.0]), rtol=1e-2, atol=0)
    big = torch.ones(2, dtype=torch.float16, requires_grad=True)
    assert_close(
        slopes((big * 3e4).float(), [big])[0], torch.full((2,), 3e4), rtol=1e-3, atol=0
    )  # not scaled
    with pytest.raises(ModelError, match="gradients overflow in float16"):
        slopes((big * 3e4).float() * 4, [big])


def test_without_rules_no_graph_is_kept(model: Model) -> None:
    assert not model.forward(tokens()).logits.requires_grad


@pytest.mark.parametrize(
    ("family", "plan", "capture", "says"),
    [
        (
            "llama",
            [Skip(40)],
            [],
            r"Skip\(layer=40\) writes blocks.40.hook_resid_post; the model's last layer is 3",
        ),
        ("llama", [], [Site("resid_pre", 4)], "the model's last layer is 3"),
        (
            "llama",
            [Skip(1, positions=[12])],
            [],
            "position 12 of .* asked for; the last position is 11",
        ),
        ("llama", [Ablate(Site("z", 1), units=[4])], [], "unit 4 of blocks.1.attn.hook_z"),
        ("llama", [Patch(Site("resid_pre", 1), torch.zeros(3, 5, 32))], [], "shape"),
        ("mixtral", [], [Site("mlp_post", 1)], "mixture of experts"),
        ("llama", [], [Site("router", 1)], "router"),
    ],
)
def test_impossible_places_are_refused(family: str, plan, capture, says: str) -> None:
    with pytest.raises(SiteError, match=says):
        tiny(family).forward(tokens(), plan=plan, capture=capture)


def test_places_that_are_no_places_are_one_line(model: Model) -> None:
    # without the type checks of these tests, as users meet it
    program = "from interp.sites import Site; Site('resid', 0)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "SiteError: unknown site 'resid'" in done.stderr
    with pytest.raises(SiteError, match="is inside a block"):
        model.record(tokens()).clean(Site("pattern", 0))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("kind", ["resid_pre", "z"])  # on the stock modules, through the bridge
def test_logits_at_some_positions_are_those_of_the_whole_pass(family: str, kind: SiteKind) -> None:
    model, batch, site = tiny(family), tokens(), Site(kind, 1)
    for backward in (None, GRADIENT):
        whole = model.forward(batch, capture=[site], backward=backward)
        some = model.forward(batch, capture=[site], backward=backward, positions=slice(2, 4))
        torch.testing.assert_close(some.logits, whole.logits[:, 2:4], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(some.activations[site], whole.activations[site])
    assert model.forward(batch).logits.shape[1] == batch.tokens.shape[1]
