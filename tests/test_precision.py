"""Half precision: load checks judge by what rounding explains and still find what is wrong; scores
are those of fp32.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.analyses.circuit_discovery import CircuitDiscovery
from interp.analyses.integrated_gradients import IntegratedGradients
from interp.analyses.patching_agreement import PatchingAgreement
from interp.analyses.relevance_patching import RelevancePatching
from interp.backward import GRADIENT
from interp.errors import ModelError
from interp.models import Model
from interp.models.bridge.building import build_bridge
from interp.models.gradients import graph, slopes
from interp.models.rounding import allowed, error, is_near, is_sum
from interp.sites import INNER_KINDS, Site
from interp.testing import check_model
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


def in_type(family: str, dtype: str) -> nn.Module:
    return copy.deepcopy(tiny(family).module).to(DTYPES[dtype])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "olmo2"])
def test_a_model_shows_the_same_places_in_every_type(family: str, dtype: str) -> None:
    wide, low = tiny(family), Model(family, in_type(family, dtype))
    for kind in INNER_KINDS:
        reasons = []
        for model in (wide, low):
            try:
                model.refuse(Site(kind, 1), is_edited=kind in ("z", "pattern", "mlp_post"))
                reasons.append("")
            except interp.errors.InterpError as reason:
                reasons.append(str(reason))
        assert reasons[0] == reasons[1], kind


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_a_block_that_writes_a_third_time_is_found_in_every_type(dtype: str, size: float) -> None:
    module = in_type("llama", dtype)
    with torch.no_grad():
        module.model.embed_tokens.weight[:, 5] = (
            3000.0  # a massive activation excuses nothing elsewhere
        )

    class Third(type(module.model.layers[2])):
        def forward(
            self, hidden_states: torch.Tensor, past_key_values: object = None, **more: object
        ) -> torch.Tensor:
            output = super().forward(hidden_states, past_key_values=past_key_values, **more)
            return output + size * torch.linspace(-1, 1, 32, dtype=output.dtype)

    module.model.layers[2].__class__ = Third
    with pytest.raises(
        ModelError, match="block 2 of LlamaForCausalLM does more to the residual stream"
    ):
        Model("three writes", module)


def test_what_happens_between_the_blocks_or_to_the_logits_is_found_in_every_type(
    dtype: str,
) -> None:
    scaled = in_type("llama", dtype)

    class Moved(type(scaled.model.norm)):
        def __call__(self, resid: torch.Tensor) -> torch.Tensor:
            return super().__call__(resid.roll(1, dims=-1))

    scaled.model.norm.__class__ = Moved
    with pytest.raises(ModelError, match="LlamaForCausalLM"):
        Model("moved", scaled)
    plain = in_type("llama", dtype)
    forward = plain.forward

    def other(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 1.2
        return output

    plain.forward = other
    with pytest.raises(ModelError, match="does something to its logits"):
        Model("scaled", plain)


@torch.no_grad()
def test_a_bridge_with_folded_weights_is_refused_in_every_type(dtype: str) -> None:
    model = interp.load_model("zoo/names-6l", dtype=dtype)
    whole, folded = (
        build_bridge(copy.deepcopy(model.module), tokenizer=model.tokenizer) for _ in range(2)
    )
    assert interp.load_model(whole).bridge is whole
    folded.enable_compatibility_mode()
    with pytest.raises(ModelError, match="compatibility mode folds its weights"):
        interp.load_model(folded)


@pytest.mark.parametrize(
    ("family", "low"), [("llama", "bfloat16"), ("gpt2", "float16"), ("gemma2", "bfloat16")]
)
def test_the_contract_holds_in_half_precision_and_finds_a_wrong_tensor_there(
    family: str, low: str
) -> None:
    model = Model(family, in_type(family, low))
    check_model(model)
    block = model.blocks[2]  # of the layers looked at
    attn, mlp = block.attn_write, block.mlp_write
    for name, module in (("attn_write", mlp), ("mlp_write", attn)):
        object.__setattr__(block, name, module)
    with pytest.raises(AssertionError, match=r"breaks \d+ checks"):
        check_model(model)


def test_rounding_explains_what_a_sum_in_half_precision_loses_and_no_more() -> None:
    a, b, c = (
        torch.randn(1000, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3)
    )
    assert is_sum((a + b) + c, a, b, c)
    assert is_sum(a + (b + c), a, b, c)
    assert not is_sum((a + b) + c, a, b)
    off = (a + b) + c
    off[7] += 0.5
    assert not is_sum(off, a, b, c)
    assert error(
        torch.tensor([[3.0, 5.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    ) == pytest.approx(0.2)
    assert is_near(a, a.float())
    assert not is_near(a, a[:5])
    assert allowed(torch.float16, depth=30) < allowed(torch.bfloat16, depth=4) < 0.1


@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_relevance_in_half_precision_correlates_with_that_in_fp32(low: str) -> None:
    scores = {}
    for each in ("float32", low):
        model = interp.load_model("zoo/names-6l", dtype=each)
        with torch.inference_mode():
            frame = RelevancePatching().run(model, interp.load_task("ioi", n=3)).to_frame()
        scores[each] = frame.set_index(["method", "node", "layer", "unit", "position"])[
            "mean"
        ].fillna(0)
    for node, wide in scores["float32"].groupby("node"):
        assert np.corrcoef(wide, scores[low].loc[wide.index])[0, 1] > 0.999, node


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("through", [[], [Site("pattern", 0)]], ids=["stock", "bridge"])
def test_a_residual_that_is_only_captured_changes_no_logit_in_half_precision(
    family: str, through: list[Site]
) -> None:
    low = Model(family, in_type(family, "bfloat16"))
    sites = [Site("resid_mid", layer) for layer in range(4)]
    without = low.forward(tokens(), capture=through).logits
    done = low.forward(tokens(), capture=[*sites, *through], backward=GRADIENT)
    assert torch.equal(done.logits, without)
    with graph():
        found = slopes(done.logits[:, -1, 5], [done.activations[site] for site in sites])
    assert all(bool(slope.abs().sum() > 0) for slope in found)


@pytest.mark.parametrize(
    ("analysis", "task"),
    [
        (PatchingAgreement(nodes=("mlp_out",)), "ioi"),
        (CircuitDiscovery(fractions=(0.1, 1.0), draws=1), "ioi"),
        (IntegratedGradients(max_nodes=17), "one-hop"),
    ],
    ids=lambda each: type(each).__name__ if not isinstance(each, str) else each,
)
def test_gradients_of_analyses_do_not_depend_on_the_callers_mode(analysis, task: str) -> None:
    with torch.inference_mode():
        model = interp.load_model(
            "zoo/names-6l" if task == "ioi" else "zoo/hops-4l", dtype="bfloat16"
        )
        result = analysis.run(model, interp.load_task(task, n=6))
    assert np.isfinite(result.to_frame().select_dtypes("float").to_numpy()).any()
