"""Texts along a path of layers equal those of generation, whole or with layers skipped."""

import pytest
import torch

import interp
from interp.errors import AnalysisError, TaskError
from interp.interventions import Skip
from interp.models import Model
from interp.sweeps import continuations
from interp.sweeps.continuations import texts_along
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

NEW = 4
PATHS = [(0, 1, 2, 3), (0, 2, 3), (1, 2), (0, 1, 1, 2, 3), (3, 1, 0), ()]


@pytest.fixture(scope="module")
def zoo() -> Model:
    return interp.load_model("zoo/hops-4l")


def shard_of(model: Model, n: int = 5) -> TokenBatch:
    task = interp.load_task("two-hop", n=24)
    return model.tokenize(max(model.shards(task), key=len)[:n])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_layers_in_order_give_the_greedy_text(dtype: str) -> None:
    model = interp.load_model("zoo/hops-4l", dtype=dtype)
    shard = shard_of(model)
    said = texts_along(model, shard, [range(model.n_layers)], max_new_tokens=NEW)
    assert said == [model.generate(shard, max_new_tokens=NEW).texts]


def test_a_path_without_a_layer_gives_the_text_with_that_layer_skipped(zoo: Model) -> None:
    shard = shard_of(zoo)
    paths = [[layer for layer in range(4) if layer != out] for out in range(4)]
    said = texts_along(zoo, shard, paths, max_new_tokens=NEW)
    for out, texts in enumerate(said):
        assert texts == zoo.generate(shard, max_new_tokens=NEW, plan=[Skip(out)]).texts


@torch.no_grad()
def test_any_path_is_run_anew_for_every_token(zoo: Model) -> None:
    shard = shard_of(zoo)
    said = texts_along(zoo, shard, PATHS, max_new_tokens=NEW)
    for path, texts in zip(PATHS, said, strict=True):
        tokens = shard.tokens
        for _ in range(NEW):
            recording = zoo.record(zoo.tokenize(tokens))
            embedded, _ = recording.runner.dry(tokens, None, start=0)
            last = recording.logits(recording.chain(path, embedded), positions=[-1])[:, 0]
            tokens = torch.cat([tokens, last.argmax(-1, keepdim=True)], dim=1)
        assert list(texts) == zoo.tokenizer.batch_decode(tokens[:, -NEW:])


def test_texts_do_not_depend_on_what_runs_together(
    zoo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shard_of(zoo)
    together = texts_along(zoo, shard, PATHS, max_new_tokens=NEW)
    by_prompt = [
        texts_along(zoo, shard.only([i]), PATHS, max_new_tokens=NEW)
        for i in range(len(shard.prompts))
    ]
    assert together == [tuple(row[0] for row in rows) for rows in zip(*by_prompt, strict=True)]
    monkeypatch.setattr(continuations, "variants_at_once", lambda *_, **__: 1)
    assert texts_along(zoo, shard, PATHS, max_new_tokens=NEW) == together


def test_a_text_ends_as_generation_does(zoo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(zoo)
    first = zoo.generate(shard, max_new_tokens=1).tokens[0, -1]
    monkeypatch.setattr(zoo.module.generation_config, "eos_token_id", int(first))
    (said,) = texts_along(zoo, shard, [range(4)], max_new_tokens=NEW)
    assert said == zoo.generate(shard, max_new_tokens=NEW).texts


def test_the_blocks_that_run_are_counted(zoo: Model) -> None:
    shard, before = shard_of(zoo), zoo.work.block_tokens
    texts_along(zoo, shard, [(0, 2), (1, 1, 3)], max_new_tokens=2)
    n, n_pos = shard.tokens.shape
    assert zoo.work.block_tokens - before == 5 * n * (n_pos + n_pos + 1)


def test_what_cannot_be_run_is_refused(zoo: Model) -> None:
    shard = shard_of(zoo)
    with pytest.raises(AnalysisError, match="layer 4 in a path; the model's last layer is 3"):
        texts_along(zoo, shard, [(0, 4)], max_new_tokens=NEW)
    with pytest.raises(TaskError):
        texts_along(zoo, shard, [(0, 1)], max_new_tokens=0)
    ragged = zoo.tokenize([Prompt("1", "Nora rival"), Prompt("2", "Nora rival teacher")])
    with pytest.raises(TaskError, match="one length"):
        texts_along(zoo, ragged, [(0, 1)], max_new_tokens=NEW)
