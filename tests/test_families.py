"""Every family keeps the contract, is described by the docs as it is, and runs every analysis of
the papers.
"""

import copy
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from interp.analysis import Analysis
from interp.backward import RULES
from interp.errors import ModelError, SiteError
from interp.interventions import Ablate
from interp.models import Model
from interp.runs.registry import make_analysis
from interp.sites import BLOCK_KINDS, Site
from interp.tasks import Prompt, Task
from interp.testing import Examination, check_model, examine
from interp.testing.table import row
from tests.families import ALL, EVERY, OTHER_BLOCKS, WITH_IMAGES, WITHOUT_LENS, tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")
DOCS = Path(__file__).parent.parent / "docs/families.md"
# what differs in kind: attention, norms, parallel sublayers, experts; the others are slow tests
OF_A_KIND = {"falcon", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "llama", "mixtral", "olmo2", "phi"}
OF_A_KIND |= {"helium", "qwen3_vl"}  # found in a pass; in a model of images too
FOUND = WITHOUT_LENS | WITH_IMAGES
WORDS = [f"w{i}" for i in range(97)]


def of_a_kind(family: str) -> Any:
    """Return a family as a parameter, slow unless it stands for a kind."""
    return family if family in OF_A_KIND else pytest.param(family, marks=pytest.mark.slow)


@cache
def examined(family: str) -> Examination:
    return examine(tiny(family))


@pytest.mark.parametrize("family", [*map(of_a_kind, ALL), *OTHER_BLOCKS, *map(of_a_kind, FOUND)])
def test_the_contract_holds_and_the_docs_tell_what_is_refused(family: str) -> None:
    assert [f"{f.check} ({f.aspect}): {f.why}" for f in examined(family).failed] == []
    for finding in examined(family).refused:  # inner sites only, each with its cause
        is_missing_middle = finding.check == "resid_mid" and tiny(family).is_parallel
        has_other_blocks = family in OTHER_BLOCKS | FOUND and not finding.check.startswith(
            "resid_p"
        )
        assert finding.check not in BLOCK_KINDS or is_missing_middle or has_other_blocks
        assert finding.why
    assert row(family, examined(family)) in DOCS.read_text().splitlines(), (
        "run `python scripts/families.py`"
    )


def test_the_docs_name_no_other_family() -> None:
    named = re.findall(r"^\| `([^`]+)` \|", DOCS.read_text(), flags=re.MULTILINE)
    assert named == sorted(EVERY)


@cache
def speaking(family: str) -> Model:
    """Return a family's model with a tokenizer of as many words as it has tokens."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Model(family, tiny(family).module, PreTrainedTokenizerFast(tokenizer_object=words))


@cache
def task() -> Task:
    draw, prompts = random.Random(0), []
    for i in range(24):
        entity, other, relation, again, answer, wrong, bridge = draw.sample(WORDS[3:], 7)
        text = f"{again} {entity} {relation} {draw.choice(WORDS[3:])}"
        twin = text.replace(entity, other)
        prompts.append(
            Prompt(str(i), text, answer, wrong, twin, subject=f"{entity} {relation}", bridge=bridge)
        )
    return Task("words", tuple(prompts))


def strongest_rules(model: Model) -> str:
    """Return the first set of rules that a family honours; all have the ordinary gradient."""
    for name in ("relp", "gradient"):
        try:
            model.refuse_rules(RULES[name])
        except SiteError:
            continue
        return name
    return "none"


def of_the_papers(model: Model) -> dict[str, Analysis]:
    rules = strongest_rules(model)
    relevance = {"rules": rules} if rules == "relp" else {"methods": ("attribution",)}
    nodes = {"nodes": ("resid_pre", "attn_out", "mlp_out")}
    settings: dict[str, dict[str, object]] = {
        "residual_contribution": {},
        "layer_skip": {},
        "void_detection": {"max_new_tokens": 2},
        "relevance_patching": relevance | nodes,
        "back_patching": {"known_only": False},
        "depth_map": {"method": "cka"},  # with twins; maps of tokens take longer
    }
    return {name: make_analysis(name, given) for name, given in settings.items()}


@pytest.mark.parametrize("family", map(of_a_kind, ALL))
def test_every_analysis_of_the_papers_runs(family: str) -> None:
    model = speaking(family)
    for name, analysis in of_the_papers(model).items():
        result = analysis.run(model, task())
        numbers = result.to_frame().select_dtypes("float")
        assert len(numbers) > 0, name
        assert np.isfinite(numbers.to_numpy()).any(), name
        assert not np.isinf(numbers.to_numpy()).any(), name
        if family == "llama":  # words and figures take longer than the numbers
            assert result.summary(), name
            assert result.plot().data, name


def test_a_wrong_tensor_under_a_right_name_is_found() -> None:
    model = tiny("llama", seed=1)
    check_model(model)
    block = model.blocks[model.n_layers - 1]
    attn, mlp = block.attn_write, block.mlp_write
    for name, module in (("attn_write", mlp), ("mlp_write", attn)):  # their sum is still right
        object.__setattr__(block, name, module)
    try:
        with pytest.raises(AssertionError, match=r"breaks \d+ checks(.|\n)*resid_mid"):
            check_model(model)
    finally:
        object.__setattr__(block, "attn_write", attn)
        object.__setattr__(block, "mlp_write", mlp)


def test_a_sublayer_with_the_wrong_scale_is_found_when_a_model_is_loaded() -> None:
    module = copy.deepcopy(tiny("granite").module)
    module.config.residual_multiplier = 1.0
    with pytest.raises(
        ModelError, match="does more to the residual stream than adding attention and MLP"
    ):
        Model("granite", module)


def test_a_family_with_norms_on_the_stream_is_refused() -> None:
    config = AutoConfig.for_model("opt", **ALL["opt"][1], do_layer_norm_before=False)
    with pytest.raises(ModelError, match="cannot be taken apart"):
        Model("opt", AutoModelForCausalLM.from_config(config))


def test_experts_can_be_silenced_and_steered_by_their_weights() -> None:
    model, site = tiny("mixtral"), Site("router", 1)
    weights = model.forward(tokens(), capture=[site]).activations[site]
    assert weights.shape == (3, 12, 4)
    assert_close(weights.sum(-1), torch.ones(3, 12))
    assert bool(((weights > 0).sum(-1) == 2).all())
    first = weights.argmax(-1)[0, 0].item()
    without = model.forward(
        tokens(), plan=[Ablate(site, units=[first], positions=[0])], capture=[site]
    )
    assert bool((without.activations[site][:, 0, first] == 0).all())
    assert not torch.equal(without.logits, model.logits(tokens()))
