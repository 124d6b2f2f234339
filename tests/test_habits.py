"""What people do in a notebook: texts in, names of hooks, own functions, maps of heads."""

from functools import cache

import pytest
import torch
from torch.testing import assert_close

import interp
from interp.errors import SiteError
from interp.interventions import Ablate, Edit
from interp.models import Model
from interp.models.head_maps import Factored, composition
from interp.sites import KINDS, Site, sites_of

TEXT = "the dax of Ada is"


@cache
def hops() -> Model:
    return interp.load_model("zoo/hops-4l")


@cache
def text() -> str:
    return interp.load_task("two-hop", n=1).prompts[0].text


def test_a_text_is_as_good_as_a_batch() -> None:
    model = hops()
    assert_close(model.forward(text()).logits, model.forward(model.tokenize(text())).logits)


def test_places_go_by_their_names_too() -> None:
    model = hops()
    seen = model.forward(text(), capture=["pattern", "blocks.2.hook_resid_post"]).activations
    assert [*seen] == sorted([*(Site("pattern", i) for i in range(4)), Site("resid_post", 2)])
    assert_close(seen["pattern", 3], seen[Site("pattern", 3)])
    assert_close(seen["blocks.2.hook_resid_post"], seen["resid_post", 2])
    with pytest.raises(SiteError, match="was not captured; there is"):
        seen["resid_post", 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_read_as_it_is_printed(kind: str) -> None:
    site = Site(kind, 12)
    assert Site.named(str(site)) == site


@pytest.mark.parametrize("name", ["hook_resid", "blocks.x.hook_resid_pre", "blocks.1.q", "", "pat"])
def test_other_names_are_one_line(name: str) -> None:
    with pytest.raises(SiteError, match=r"there are names like blocks\.0\.hook_resid_pre"):
        sites_of([name], n_layers=2)


def test_an_own_function_reaches_the_stream_as_an_ablation_does() -> None:
    model, site = hops(), Site("z", 1)
    edited = model.forward(text(), plan=[Edit(site, torch.zeros_like, units=[2], positions=[3])])
    ablated = model.forward(text(), plan=[Ablate(site, units=[2], positions=[3])])
    assert_close(edited.logits, ablated.logits)
    assert not torch.equal(edited.logits, model.forward(text()).logits)


def test_a_function_that_changes_what_it_is_given_changes_no_other_part() -> None:
    def spoil(activation: torch.Tensor) -> torch.Tensor:
        activation.zero_()
        return activation

    model, site = hops(), Site("resid_post", 1)
    plan = [Edit(site, spoil, positions=[1])]
    found = model.forward(text(), plan=plan, capture=[site]).activations[site]
    clean = model.forward(text(), capture=[site]).activations[site]
    assert not found[:, 1].any()
    assert_close(found[:, 2:], clean[:, 2:])


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda _: None, "returned NoneType; a function returns the new activation"),
        (lambda a: a[:, :1], r"returned \[1 1 .*is there"),
        (lambda a: a.double(), "of torch.float64; .* of torch.float32 is there"),
        (lambda a: a / 0 * 0, "returned NaN where there was a number"),
    ],
)
def test_what_a_function_must_not_return_is_one_line(fn: object, why: str) -> None:
    with pytest.raises(SiteError, match=why):
        hops().forward(text(), plan=[Edit(Site("resid_post", 1), fn)])


def test_a_map_is_its_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 2, generator=generator) for _ in range(2))
    one = Factored(a, b.T)
    u, s, v = one.svd()
    assert_close(u * s @ v, one.matrix)
    assert one.norm == pytest.approx(float(one.matrix.norm()))
    assert_close((one @ one.T).matrix, one.matrix @ one.matrix.T)
    expected = float((one.matrix @ one.matrix).norm() / one.matrix.norm() ** 2)
    assert composition(one, one) == pytest.approx(expected)


@torch.no_grad()
def test_maps_of_heads_say_what_values_and_scores_are(family: str, model: Model) -> None:
    layer, head = 1, 1
    shard = model.tokenize([[1, 5, 9, 7]])
    capture = [Site(kind, layer) for kind in ("v", "resid_pre")]
    seen = model.forward(shard, capture=capture).activations
    stream, v = seen["resid_pre", layer][0].float(), seen["v", layer][0].float()
    normed = model.bridge.blocks[layer].ln1(stream[None].to(model.dtype))[0].float()
    kv_head = head * v.shape[1] // model.n_heads
    plain, folded = (model.W_OV(layer, head, folded=f) for f in (False, True))
    moved = (v[2, kv_head] - v[3, kv_head]) @ plain.right  # a difference, so that biases go
    assert_close((normed[2] - normed[3]) @ plain.matrix, moved, rtol=1e-3, atol=1e-4)
    centred = stream - stream.mean(-1, keepdim=True) * ("gpt" in family or "neox" in family)
    scaled = centred / centred.pow(2).mean(-1, keepdim=True).sqrt()
    assert_close((scaled[2] - scaled[3]) @ folded.matrix, moved, rtol=1e-2, atol=1e-3)


def test_embeddings_have_their_shapes_and_directions_their_tokens() -> None:
    model = hops()
    assert model.W_E.shape == (len(model.W_E), model.d_model)
    assert model.W_U.shape == (model.d_model, model.d_vocab)
    assert len(model.tokens_towards(model.W_OV(1, 0).svd()[2][0], k=3)) == 3


def test_a_head_that_is_not_there_is_one_line() -> None:
    with pytest.raises(SiteError, match="head 99 asked for; the model's last head is"):
        hops().W_OV(0, 99)
