"""A captured corpus is what forward passes give, in bounded memory, in any order."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader

import interp
from interp import Site
from interp import capture as capture_module
from interp.capture import capture
from interp.errors import SiteError, StoreError, TaskError
from interp.models import Model, load_model
from interp.store import (
    ActivationStore,
    Corpus,
    Settings,
    TokenVectors,
    open_corpus,
    prune,
    shards,
    to_arrow,
    to_numpy,
)
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch
from tests.families import tiny

pytestmark = pytest.mark.filterwarnings("ignore")
SITES = [
    Site("resid_pre", 0),
    *(Site("resid_post", layer) for layer in range(4)),
    Site("mlp_out", 2),
]


def rows(n: int = 40, *, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 20, (n,), generator=generator).tolist()
    return [torch.randint(3, 97, (length,), generator=generator).tolist() for length in lengths]


def alone(model: Model, row: list[int], site: Site) -> torch.Tensor:
    tokens = torch.tensor([row])
    batch = TokenBatch(
        (Prompt("0", "x"),),
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        torch.tensor([len(row) - 1]),
    )
    return model.forward(batch, capture=[site]).activations[site][0]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "SHARD_TOKENS", 64)


@pytest.fixture
def corpus(tmp_path: Path, small_shards: None) -> Corpus:  # noqa: ARG001
    model = load_model(tiny("llama").module, store=tmp_path)
    return capture(model, rows(), sites=SITES, name="c")


def test_every_prompt_and_site_equals_a_forward_of_its_own(corpus: Corpus) -> None:
    assert len(corpus) == 40
    assert corpus.n_tokens == sum(map(len, rows())) == sum(corpus.lengths())
    assert corpus.sites == tuple(sorted(SITES))
    for number in (0, 7, 39, -1):
        assert corpus.tokens(number).tolist() == rows()[number]
        for site in SITES:
            assert_close(
                corpus.read(number, site),
                alone(tiny("llama"), rows()[number], site),
                atol=1e-5,
                rtol=1e-5,
            )
    span = corpus.read(3, SITES[2], start=1, stop=-1)
    assert torch.equal(span, corpus.read(3, SITES[2])[1:-1])


def test_a_residual_has_two_names(corpus: Corpus) -> None:
    assert torch.equal(corpus.read(5, Site("resid_pre", 2)), corpus.read(5, Site("resid_post", 1)))


def test_a_column_is_all_prompts_in_order(corpus: Corpus) -> None:
    column = torch.cat(list(corpus.column(SITES[1])))
    assert torch.equal(column, torch.cat([corpus.read(i, SITES[1]) for i in range(len(corpus))]))


def test_what_is_not_there_is_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(
        StoreError,
        match=r"blocks.3.hook_mlp_out was not captured in 'c'; there is blocks.0.hook_resid_pre",
    ):
        corpus.read(0, Site("mlp_out", 3))
    with pytest.raises(StoreError, match="prompt 40 asked for; 'c' has 40"):
        corpus.tokens(40)
    with pytest.raises(StoreError, match="unknown corpus 'cc'; did you mean 'c'"):
        open_corpus(tmp_path, "cc")
    with pytest.raises(StoreError, match=r"corpus '\.\./c' given"):
        open_corpus(tmp_path, "../c")


def test_the_same_call_computes_nothing_and_more_sites_only_those(
    tmp_path: Path,
    small_shards: None,  # noqa: ARG001
) -> None:
    model = load_model(tiny("llama").module, store=tmp_path)
    first = capture(model, rows(), sites=SITES[:2], name="c")
    n_forwards = count_forwards(model)
    again = capture(model, rows(), sites=SITES[:2], name="c")
    assert next(n_forwards) == 0
    assert first.manifest == again.manifest
    before = set(shards(tmp_path))
    more = capture(model, rows(), sites=SITES, name="c")
    assert next(n_forwards) > 0
    assert all(
        "resid.0" not in more.reader.header(f"{p.parent.name}/{p.name}").tensors
        for p in {*shards(tmp_path)} - before
    )
    for site in SITES:
        assert_close(more.read(11, site), alone(model, rows()[11], site), atol=1e-5, rtol=1e-5)


def count_forwards(model: Model) -> Iterator[int]:
    counts = [0]
    model.module.register_forward_pre_hook(lambda *_: counts.__setitem__(0, counts[0] + 1))
    while True:
        yield counts[0]


def test_an_interrupted_capture_goes_on_where_it_stopped(
    tmp_path: Path,
    small_shards: None,  # noqa: ARG001
) -> None:
    model = load_model(tiny("llama").module, store=tmp_path)
    whole = capture(
        load_model(tiny("llama").module, store=tmp_path / "other"), rows(), sites=SITES, name="c"
    )

    def stop(done: int) -> None:
        if done > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(model, rows(), sites=SITES, name="c", progress=stop)
    with pytest.raises(StoreError, match="unknown corpus"):
        open_corpus(tmp_path, "c")
    kept = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    assert kept
    corpus = capture(model, iter(rows()), sites=SITES, name="c")
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert corpus.manifest == whole.manifest


def test_what_a_recording_stored_is_not_computed_again_nor_the_other_way_round(
    tmp_path: Path,
) -> None:
    model = load_model(tiny("llama").module, store=tmp_path)
    tokens = torch.randint(3, 97, (4, 9))
    prompts = tuple(Prompt(str(i), "x") for i in range(4))
    batch = TokenBatch(
        prompts, tokens, torch.ones_like(tokens, dtype=torch.bool), torch.full((4,), 8)
    )
    resid = model.record(batch).resid(2)
    n_forwards = count_forwards(model)
    corpus = capture(model, tokens, sites=[Site("resid_post", 1)], name="recorded")
    assert next(n_forwards) == 0
    assert torch.equal(corpus.read(2, Site("resid_post", 1)), resid[2])
    other = torch.randint(3, 97, (2, 6))
    capture(model, other, sites=[Site("resid_post", 1)], name="first")
    recording = model.record(
        TokenBatch(
            prompts[:2], other, torch.ones_like(other, dtype=torch.bool), torch.full((2,), 5)
        )
    )
    assert recording.resid(2).shape == (2, 6, 32)
    assert recording.work.block_tokens == 0


def test_inner_sites_come_from_a_pass_of_their_own(tmp_path: Path) -> None:
    model = load_model(tiny("llama").module, store=tmp_path)
    sites = [Site("z", 1), Site("mlp_post", 0), Site("resid_post", 0)]
    corpus = capture(model, rows(6), sites=sites, name="inner")
    for site in sites:
        assert_close(corpus.read(4, site), alone(model, rows(6)[4], site), atol=1e-5, rtol=1e-5)


def test_a_prompt_that_comes_twice_is_kept_once(tmp_path: Path) -> None:
    model = load_model(tiny("llama").module, store=tmp_path)
    corpus = capture(model, [*rows(3), *rows(3)], sites=SITES[:1], name="twice")
    assert len(corpus) == 6
    assert torch.equal(corpus.read(1, SITES[0]), corpus.read(4, SITES[0]))
    assert sum(
        corpus.reader.header(f"{p.parent.name}/{p.name}").starts[-1] for p in shards(tmp_path)
    ) == sum(map(len, rows(3)))


def test_texts_are_tokenized_and_long_ones_cut(tmp_path: Path) -> None:
    model = interp.load_model("zoo/hops-4l", store=tmp_path)
    prompts = interp.load_task("two-hop").prompts[:3]
    texts = [prompts[0].text, prompts[1].text, " ".join(p.text for p in prompts) * 3]
    corpus = capture(model, texts, sites=[Site("resid_post", 3)], name="texts")
    lengths = list(corpus.lengths())
    assert max(lengths) == model.module.config.max_position_embeddings
    assert corpus.tokens(0).tolist() == model.tokenize(texts[0]).tokens[0].tolist()
    assert sum(lengths) == sum(len(row) for row in model.tokenizer(texts)["input_ids"])


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    model = load_model(tiny("llama").module, store=tmp_path)
    with pytest.raises(SiteError, match="last layer is 3"):
        capture(model, rows(), sites=[Site("resid_post", 4)], name="c")
    with pytest.raises(SiteError, match="not those per pair of tokens"):
        capture(model, rows(), sites=[Site("pattern", 0)], name="c")
    with pytest.raises(TaskError, match="text 1 has no tokens"):
        capture(model, [[3], []], sites=SITES, name="c")
    with pytest.raises(TaskError, match="text 0 has token 97; the model's vocabulary is 0 to 96"):
        capture(model, [[97]], sites=SITES, name="c")
    with pytest.raises(TaskError, match="has no tokenizer"):
        capture(model, ["words"], sites=SITES, name="c")
    with pytest.raises(StoreError, match="no sites given"):
        capture(model, rows(), sites=[], name="c")
    with pytest.raises(StoreError, match=r"corpus 'a/b' given"):
        capture(model, rows(), sites=SITES, name="a/b")
    with pytest.raises(StoreError, match="keeps no store"):
        capture(tiny("llama"), rows(), sites=SITES, name="c")


def test_a_corpus_larger_than_the_quota_is_refused(tmp_path: Path, small_shards: None) -> None:  # noqa: ARG001
    model = tiny("llama")
    store = ActivationStore(tmp_path, model=model.fingerprint, settings=Settings(quota=100_000))
    with pytest.raises(StoreError, match="quota of 100000 bytes"):
        capture(model, rows(), sites=SITES, name="c", store=store)


def test_a_corpus_whose_shards_the_quota_removed_is_computed_again(
    tmp_path: Path,
    small_shards: None,  # noqa: ARG001
) -> None:
    model = tiny("llama")
    whole = ActivationStore(tmp_path / "whole", model=model.fingerprint)
    expected = capture(model, rows(), sites=SITES, name="a", store=whole)
    quota = sum(path.stat().st_size for path in shards(tmp_path / "whole")) * 3 // 2
    store = ActivationStore(
        tmp_path / "small", model=model.fingerprint, settings=Settings(quota=quota)
    )
    capture(model, rows(), sites=SITES, name="a", store=store)
    capture(model, rows(seed=1), sites=SITES, name="b", store=store)
    with pytest.raises(StoreError, match="corpus 'a' is not whole"):
        list(open_corpus(tmp_path / "small", "a").column(SITES[0]))
    again = capture(model, rows(), sites=SITES, name="a", store=store)
    for site in SITES:
        assert torch.equal(torch.cat([*again.column(site)]), torch.cat([*expected.column(site)]))


def test_a_shard_that_another_process_removes_meanwhile_is_named(
    tmp_path: Path,
    small_shards: None,  # noqa: ARG001
) -> None:
    model, lost = tiny("llama"), []

    def remove_one(n_tokens: int) -> None:
        if n_tokens > 200 and not lost:
            lost.append(min(shards(tmp_path)))
            lost[0].unlink()

    store = ActivationStore(tmp_path, model=model.fingerprint)
    with pytest.raises(
        StoreError, match="was removed while the corpus was captured; capture it again"
    ) as refused:
        capture(model, rows(), sites=SITES, name="c", store=store, progress=remove_one)
    assert str(lost[0]) in str(refused.value)
    assert len(capture(model, rows(), sites=SITES, name="c", store=store)) == 40


def test_a_lost_shard_is_named_and_only_it_is_computed_again(
    corpus: Corpus, tmp_path: Path
) -> None:
    paths = sorted(shards(tmp_path))
    paths[0].unlink()
    again = open_corpus(tmp_path, "c")
    with pytest.raises(
        StoreError, match=f"corpus 'c' is not whole: {paths[0]} is gone; capture it again"
    ):
        list(again.column(SITES[0]))
    kept = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    model = load_model(tiny("llama").module, store=tmp_path)
    assert capture(model, rows(), sites=SITES, name="c").manifest == corpus.manifest
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def batches(
    corpus: Corpus, *, seed: int | None, n_workers: int = 0
) -> list[dict[str, torch.Tensor]]:
    vectors = TokenVectors(corpus, SITES[1:3], batch_size=32, seed=seed)
    return list(DataLoader(vectors, batch_size=None, num_workers=n_workers))


def test_a_loader_gives_every_token_once_and_the_same_batches_for_any_number_of_workers(
    corpus: Corpus,
) -> None:
    first = batches(corpus, seed=1)
    site = str(SITES[1])
    assert len(first) == -(-corpus.n_tokens // 32)
    everything = torch.cat([batch[site] for batch in first])
    column = torch.cat(list(corpus.column(SITES[1])))
    assert torch.equal(everything.sort(0).values, column.sort(0).values)
    assert not torch.equal(everything, column)
    for n_workers in (1, 2, 3):
        for ours, theirs in zip(first, batches(corpus, seed=1, n_workers=n_workers), strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(
        torch.cat([batch[site] for batch in batches(corpus, seed=2)]), everything
    )
    assert torch.equal(torch.cat([batch[site] for batch in batches(corpus, seed=None)]), column)


def test_tokens_stay_beside_their_vectors(corpus: Corpus) -> None:
    vectors, tokens = (
        torch.cat(list(corpus.column(SITES[1]))),
        torch.cat(list(corpus.pieces("tokens"))),
    )
    where = {
        tuple(vector.tolist()): token
        for vector, token in zip(vectors, tokens.tolist(), strict=True)
    }
    for batch in batches(corpus, seed=3):
        for vector, token in zip(batch[str(SITES[1])], batch["tokens"].tolist(), strict=True):
            assert where[tuple(vector.tolist())] == token


def test_shuffling_mixes_shards(corpus: Corpus) -> None:
    where = {
        tuple(vector.tolist()): i
        for i, vector in enumerate(torch.cat(list(corpus.column(SITES[1]))))
    }
    for batch in batches(corpus, seed=0)[:-1]:
        places = [where[tuple(vector.tolist())] for vector in batch[str(SITES[1])]]
        assert max(places) - min(places) > 64, "a shard has at most 64 tokens here"


def test_a_loader_mixes_sites_that_were_captured_apart(corpus: Corpus, tmp_path: Path) -> None:
    model = load_model(tiny("llama").module, store=tmp_path)
    more = capture(model, rows(), sites=[*SITES, Site("attn_out", 3)], name="more")
    assert more.manifest.spans["attn_out.3"] != more.manifest.spans["tokens"]
    vectors = pickle.loads(
        pickle.dumps(TokenVectors(more, [SITES[1], Site("attn_out", 3)], batch_size=32, seed=1))
    )
    for ours, theirs in zip(vectors, batches(corpus, seed=1), strict=True):
        assert torch.equal(ours["tokens"], theirs["tokens"])
        assert torch.equal(ours[str(SITES[1])], theirs[str(SITES[1])])
    ours = torch.cat([batch[str(Site("attn_out", 3))] for batch in vectors])
    assert torch.equal(
        ours.sort(0).values, torch.cat(list(more.column(Site("attn_out", 3)))).sort(0).values
    )


def test_numpy_holds_the_same_numbers(corpus: Corpus, tmp_path: Path) -> None:
    written = to_numpy(corpus, tmp_path / "numpy")
    starts = np.load(written["starts"])
    resid = np.load(written["resid.2"], mmap_mode="r")
    np.testing.assert_array_equal(
        resid[starts[7] : starts[8]], corpus.read(7, Site("resid_post", 1)).numpy()
    )
    np.testing.assert_array_equal(
        np.load(written["tokens"])[starts[7] : starts[8]], corpus.tokens(7).numpy()
    )
    assert not list((tmp_path / "numpy").glob(".aside-*"))


def test_arrow_and_datasets_hold_the_same_numbers(corpus: Corpus, tmp_path: Path) -> None:
    import pyarrow as pa

    with pa.OSFile(str(to_arrow(corpus, tmp_path / "c.arrow"))) as source:
        table = pa.ipc.open_stream(source).read_all()
    assert table.num_rows == 40
    vectors = np.stack(table["resid.2"][7].values.to_numpy(zero_copy_only=False))
    np.testing.assert_array_equal(vectors, corpus.read(7, Site("resid_post", 1)))
    datasets = pytest.importorskip("datasets")
    from interp.store import to_dataset

    dataset = to_dataset(corpus, tmp_path / "d.arrow")
    assert isinstance(dataset, datasets.Dataset)
    row = dataset.with_format("numpy")[7]
    np.testing.assert_array_equal(row["resid.2"], corpus.read(7, Site("resid_post", 1)))
    assert row["tokens"].tolist() == rows()[7]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smaller_types_are_exported(tmp_path: Path, dtype: str) -> None:
    model = tiny("llama")
    store = ActivationStore(tmp_path, model=model.fingerprint, settings=Settings(dtype=dtype))
    corpus = capture(model, rows(5), sites=SITES[1:2], name="c", store=store)
    expected = alone(model, rows(5)[3], SITES[1])
    read = corpus.read(3, SITES[1])
    assert read.dtype == getattr(torch, dtype)
    assert_close(read.float(), expected, atol=0.05, rtol=0.01)
    starts = np.load(to_numpy(corpus, tmp_path / "n")["starts"])
    exported = np.load(tmp_path / "n" / "resid.1.npy")
    assert exported.dtype == (np.float16 if dtype == "float16" else np.float32)
    np.testing.assert_array_equal(exported[starts[3] : starts[4]].astype(np.float32), read.float())
    assert to_arrow(corpus, tmp_path / "c.arrow").stat().st_size > 0


def test_models_with_a_corpus_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for family in ("llama", "gpt2"):
        model = tiny(family)
        store = ActivationStore(tmp_path, model=model.fingerprint, name=model.name)
        capture(model, rows(3), sites=SITES[:1], name="c", store=store)
    with pytest.raises(
        StoreError, match="corpus 'c' exists for tiny-gpt2, tiny-llama; name one as `model`"
    ):
        open_corpus(tmp_path, "c")
    assert open_corpus(tmp_path, "c", model="tiny-gpt2").manifest.model == tiny("gpt2").fingerprint
    prune(tmp_path, model="tiny-gpt2")
    assert open_corpus(tmp_path, "c").manifest.model_name == "tiny-llama"
