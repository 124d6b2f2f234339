"""What can be read and written where, as `interp sites` says it."""

import pytest
from typer.testing import CliRunner

from interp.cli import app
from interp.cli.terminal import out
from interp.models.places import places
from interp.sites import KINDS
from tests.documents import read
from tests.families import tiny


def test_every_place_has_its_shape_its_module_or_why_it_cannot_be_read() -> None:
    model = tiny("llama")
    found = {place.name: place for place in places(model)}
    assert len(found) == len(KINDS) * model.n_layers
    keys = found["blocks.1.attn.hook_k"]
    heads = model.module.config.num_key_value_heads
    assert (keys.shape["kv_head"], keys.shape["pos"]) == (heads, None)
    assert keys.module == "model.layers.1.self_attn"
    assert found["blocks.1.hook_mlp_out"].module == "model.layers.1.mlp"
    router = found["blocks.0.mlp.hook_router_scores"]
    assert (router.is_read, router.is_written, dict(router.shape)) == (False, False, {})
    assert router.why_not == "the MLP of this layer has no experts"


def test_layers_of_a_hybrid_say_which_have_attention() -> None:
    heads = [place for place in places(tiny("qwen3_5")) if place.kind == "z"]
    assert [(place.is_read, place.why_not) for place in heads] == [
        (False, "the mixer of this layer is recurrent"),
        (True, ""),
    ]


def test_on_the_command_line_layers_that_are_alike_are_one_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(out, "width", 80)
    table = CliRunner().invoke(app, ["sites", "zoo/hops-4l"]).stdout
    assert table.count("blocks.{i}.attn.hook_pattern ") == 1
    assert table.count("rw  ") == len(KINDS) - 1
    assert "the MLP of this layer has no experts" in table
    said = read(CliRunner().invoke(app, ["sites", "zoo/hops-4l", "--json"]).stdout)
    assert said["model"] == "zoo/hops-4l"
    assert said["sites"][0]["shape"] == {"prompt": None, "pos": None, "d_model": 128}


def test_a_model_that_is_not_there_is_one_line() -> None:
    done = CliRunner().invoke(app, ["sites", "zoo/hops-4"])
    assert done.exit_code != 0
