"""Sparse dictionaries: what is read from disk, and what features and errors add up to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import interp
from interp.errors import AnalysisError, SiteError
from interp.features import Dictionary, latents, load_dictionary, save_dictionary
from interp.models import Model
from interp.sites import Site

D, N = 128, 40
AT = Site("resid_pre", 2)


@pytest.fixture(scope="module")
def model() -> Model:
    return interp.load_model("zoo/names-6l")


def weights(*, d_in: int = D, d_out: int = D) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (d_in, N), "b_enc": (N,), "W_dec": (N, d_out), "b_dec": (d_out,)}
    return {k: torch.randn(*shape, generator=generator) / 4 for k, shape in shapes.items()}


def written(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    plain = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": N,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": str(AT), "model_from_pretrained_kwargs": {}},
    }
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(plain | config))
    save_file(weights() if tensors is None else tensors, folder / "sae_weights.safetensors")
    return folder


def test_a_standard_dictionary_is_read_as_its_formula_says(tmp_path: Path) -> None:
    w, x = weights(), torch.randn(3, 5, D)
    loaded = load_dictionary(written(tmp_path))
    features = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(loaded.encode(x), features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded.decode(features), features @ w["W_dec"] + w["b_dec"])
    assert loaded.reads == loaded.writes == AT


def test_the_flat_layout_of_older_versions_is_read_alike(tmp_path: Path) -> None:
    new = load_dictionary(written(tmp_path / "new"))
    old = load_dictionary(written(tmp_path / "old", metadata={}, hook_name=str(AT), hook_layer=2))
    x = torch.randn(4, D)
    assert old.reads == new.reads
    assert torch.equal(old.encode(x), new.encode(x))


def test_jumprelu_passes_what_exceeds_its_threshold_unchanged(tmp_path: Path) -> None:
    w, x = weights() | {"threshold": torch.linspace(0, 2, N)}, torch.randn(50, D)
    config = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    loaded = load_dictionary(written(tmp_path, w, **config))
    before = x @ w["W_enc"] + w["b_enc"]
    torch.testing.assert_close(loaded.encode(x), before * (before > w["threshold"]))


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "topk", "k": 7},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}},
    ],
)
def test_topk_keeps_k_features_and_none_below_0(tmp_path: Path, config: dict[str, Any]) -> None:
    w, x = weights(), torch.randn(50, D)
    loaded = load_dictionary(written(tmp_path, **config, apply_b_dec_to_input=False))
    before = x @ w["W_enc"] + w["b_enc"]
    least = before.sort(dim=-1, descending=True).values[:, 6:7]
    torch.testing.assert_close(loaded.encode(x), before.relu() * (before >= least))


def test_features_rescaled_by_their_decoder_norm_reconstruct_the_same(tmp_path: Path) -> None:
    w, x = weights(), torch.randn(50, D)
    config = {"architecture": "topk", "k": 7, "rescale_acts_by_decoder_norm": True}
    loaded = load_dictionary(written(tmp_path, **config))
    norms = w["W_dec"].norm(dim=1)
    before = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    kept = before.relu() * (before >= before.sort(dim=-1, descending=True).values[:, 6:7])
    torch.testing.assert_close(loaded.encode(x), kept, rtol=1e-4, atol=1e-4)
    expected = (kept / norms) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(loaded.decode(loaded.encode(x)), expected, rtol=1e-4, atol=1e-4)


def test_a_transcoder_reads_one_site_and_writes_another(tmp_path: Path, model: Model) -> None:
    config = {"architecture": "transcoder", "hook_name": "blocks.2.hook_mlp_in"}
    config |= {"hook_name_out": "blocks.2.hook_mlp_out", "d_out": D}
    loaded = load_dictionary(written(tmp_path, **config))
    assert (loaded.reads, loaded.writes) == (Site("resid_mid", 2), Site("mlp_out", 2))
    loaded.refuse_other(model)
    recording = model.record(model.tokenize(["When Bea and Yann went to the office"]))
    w, read = weights(), recording.clean(Site("resid_mid", 2))
    features, error = latents(recording, loaded)
    torch.testing.assert_close(features, (read @ w["W_enc"] + w["b_enc"]).relu())
    torch.testing.assert_close(
        loaded.decode(features) + error, recording.clean(Site("mlp_out", 2)), rtol=1e-4, atol=1e-5
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "gated"}, "architecture 'gated'; there is standard, "),
    ({"activation_fn_str": "tanh-relu"}, "activation 'tanh-relu'"),
    ({"normalize_activations": "layer_norm"}, "normalised by 'layer_norm'"),
    ({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, "center_writing_weights="),
    ({"model_from_pretrained_kwargs": {"fold_ln": True}}, "fold_ln=True"),
    ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
    ({"hook_head_index": 3}, "of head 3 alone"),
    ({"hook_name": "blocks.2.ln2.hook_normalized"}, "ln2.hook_normalized"),
    ({"hook_name": "blocks.2.attn.hook_z"}, "is of 'blocks.2.attn.hook_z'"),
    ({"metadata": {}}, "names no hook_name"),
    ({"d_sae": N + 1}, rf"W_enc is \({D}, {N}\); cfg.json makes it \({D}, {N + 1}\)"),
    ({"architecture": "jumprelu"}, "threshold is missing"),
    ({"architecture": "topk"}, "k=None; 1 to 40"),
]


@pytest.mark.parametrize(("config", "why"), REFUSED)
def test_what_features_would_not_survive_is_refused(
    tmp_path: Path, config: dict[str, Any], why: str
) -> None:
    with pytest.raises(AnalysisError, match=why) as refused:
        load_dictionary(written(tmp_path, **config))
    assert "\n" not in str(refused.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path)
    whole = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(whole[:-100])
    with pytest.raises(AnalysisError, match="cut short"):
        load_dictionary(folder)
    written(tmp_path, weights() | {"W_dec": torch.full((N, D), torch.nan)})
    with pytest.raises(AnalysisError, match="W_dec has NaN"):
        load_dictionary(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(AnalysisError, match=r"no cfg\.json"):
        load_dictionary(folder)
    with pytest.raises(AnalysisError, match="unknown dictionary 'nowhere'"):
        load_dictionary("nowhere")


def test_a_model_of_another_shape_is_refused(tmp_path: Path, model: Model) -> None:
    narrow = load_dictionary(written(tmp_path, weights(d_in=64, d_out=64), d_in=64))
    with pytest.raises(SiteError, match="64 dimensions; zoo/names-6l has 128"):
        narrow.refuse_other(model)
    deep = load_dictionary(written(tmp_path, hook_name="blocks.6.hook_resid_pre"))
    with pytest.raises(SiteError, match="the last layer of zoo/names-6l is 5"):
        deep.refuse_other(model)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    w = {key: each.half().float() for key, each in weights().items()}
    given = Dictionary("d", AT, AT, w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"], "topk", None, 3)
    save_dictionary(given, tmp_path, model="zoo/names-6l")
    again, x = load_dictionary(tmp_path), torch.randn(4, D)
    assert torch.equal(again.encode(x), given.encode(x))
    assert torch.equal(again.decode(x[:, :N]), given.decode(x[:, :N]))


def test_features_and_error_add_up_to_the_stream(tmp_path: Path, model: Model) -> None:
    dictionary = load_dictionary(written(tmp_path))
    recording = model.record(model.tokenize(["When Bea and Yann went to the office"]))
    features, error = latents(recording, dictionary)
    torch.testing.assert_close(
        dictionary.decode(features) + error, recording.clean(AT), rtol=1e-4, atol=1e-5
    )
