"""What is read from one pass, against hooks that keep everything; and parallel windows.

Bounds: all windows cost (L + 1)/2 forwards, clean pass included, where one by one they cost (L +
1)(L + 2)/6 (and a clean pass); the lens does the same unembeddings as its peer, in less memory.
"""

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.harness import Row, Work, compare, grown_mb, random_batch, random_llama, size_of
from interp.analyses.logit_lens import LogitLens
from interp.analyses.parallel_window import ParallelWindow
from interp.analyses.residual_contribution import ResidualContribution
from interp.models import Model
from interp.tasks.batch import TokenBatch


@torch.no_grad()
def naive_windows(model: Model, batch: TokenBatch) -> Tensor:
    """Return the relative error [batch first last] of every window on the clean residuals."""
    recording, layers = model.record(batch), model.n_layers
    errors = torch.zeros(len(batch.tokens), layers, layers)
    for first in range(layers):
        resid = recording.resid(first)
        for last in range(first, layers):
            writes = sum(
                (recording.block(layer, resid) - resid for layer in range(first, last + 1)),
                torch.zeros(()),
            )
            after = recording.resid(last + 1)
            errors[:, first, last] = (
                (resid + writes - after).norm(dim=-1) / (after - resid).norm(dim=-1)
            ).mean(1)
    return errors


@torch.no_grad()
def windows(model: Model, batch: TokenBatch) -> Tensor:
    """Return the same from half a sweep."""
    return ParallelWindow().measure(model.record(batch), batch, {})["windows"][..., 0]


@torch.no_grad()
def naive_lens(model: Model, batch: TokenBatch) -> Tensor:
    """Return KL(lens‖final) and top-5 overlap [batch layer 2], means over positions."""
    output = model.module(batch.tokens, output_hidden_states=True, use_cache=False)
    final = output.logits.float().log_softmax(-1)
    tops = torch.zeros_like(final).scatter_(-1, final.topk(5).indices, 1.0)
    curves = []
    for resid in output.hidden_states[:-1]:
        lens_logits = model.unembed(resid).float().log_softmax(-1)
        kl = (lens_logits.exp() * (lens_logits - final)).sum(-1)
        shared = (
            torch.zeros_like(final).scatter_(-1, lens_logits.topk(5).indices, 1.0) * tops
        ).sum(-1) / 5
        curves.append(torch.stack([kl.mean(1), shared.mean(1)], dim=-1))
    return torch.stack(curves, dim=1)


@torch.no_grad()
def lens(model: Model, batch: TokenBatch) -> Tensor:
    """Return the same a few tokens at a time, clean pass included."""
    read = LogitLens().measure(model.record(batch), batch, {})["readings"]
    return read[:, :-1, :, [0, 2]].mean(2)


@torch.no_grad()
def naive_contribution(model: Model, batch: TokenBatch) -> Tensor:
    """Return ten norms, ratios and cosines [batch layer measure], means over positions."""
    kept: dict[str, list[Tensor]] = {"resid": [], "attn": [], "mlp": []}
    handles = []
    for block in model.module.model.layers:
        handles += [
            block.register_forward_pre_hook(lambda _m, args: kept["resid"].append(args[0].clone())),
            block.self_attn.register_forward_hook(
                lambda _m, _a, output: kept["attn"].append(output[0].clone())
            ),
            block.mlp.register_forward_hook(
                lambda _m, _a, output: kept["mlp"].append(output.clone())
            ),
        ]
    model.module(batch.tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    resid, attn, mlp = (torch.stack(each, dim=1).float() for each in kept.values())
    writes = ((attn, resid), (mlp, resid + attn), (attn + mlp, resid))
    numbers = [each.norm(dim=-1) for each in (resid, attn, mlp)]
    numbers += [write.norm(dim=-1) / stream.norm(dim=-1) for write, stream in writes]
    numbers += [torch.cosine_similarity(write, stream, dim=-1) for write, stream in writes]
    numbers.append(torch.cosine_similarity(resid, resid + attn + mlp, dim=-1))
    return torch.stack([each.mean(2) for each in numbers], dim=-1)


@torch.no_grad()
def contribution(model: Model, batch: TokenBatch) -> Tensor:
    """Return the same, clean pass included."""
    return ResidualContribution().measure(model.record(batch), batch, {})["mean"]


def run() -> dict[str, Row]:
    """Compare both at several sizes, after checking that they agree."""
    rows: dict[str, Row] = {}
    for n_layers, d_model, batch_size, n_pos in (
        (12, 384, 1, 64),
        (12, 128, 8, 32),
        (24, 128, 1, 64),
    ):
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        torch.testing.assert_close(
            windows(model, batch), naive_windows(model, batch), rtol=1e-4, atol=1e-4
        )
        row = compare(
            lambda m=model, b=batch: windows(m, b), lambda m=model, b=batch: naive_windows(m, b)
        )
        counts = [(n_layers + 1) / 2, (n_layers + 1) * (n_layers + 2) / 6 + 1]
        counted = {
            "forwards": [round(n, 1) for n in counts],
            "bound": round(counts[0] / counts[1], 3),
        }
        rows[f"all parallel windows / one by one, {size_of(model, batch)}"] = row | counted
    for d_vocab, n_pos in ((2048, 64), (32768, 256)):
        model = random_llama(n_layers=12, d_model=384, d_vocab=d_vocab)
        batch = replace(
            random_batch(model, batch=2, n_pos=n_pos), answer=None, answer_tokens=None
        )  # the peer reads none
        torch.testing.assert_close(
            lens(model, batch), naive_lens(model, batch), rtol=1e-4, atol=1e-4
        )
        rows[f"logit lens / whole logits, V = {d_vocab}, {size_of(model, batch)}"] = compare(
            lambda m=model, b=batch: lens(m, b), lambda m=model, b=batch: naive_lens(m, b)
        ) | {"bound": 1.0}
        if d_vocab == 2048:
            torch.testing.assert_close(
                contribution(model, batch), naive_contribution(model, batch), rtol=1e-4, atol=1e-4
            )
            rows[
                f"contribution of sublayers / hooks that keep everything, {size_of(model, batch)}"
            ] = compare(
                lambda m=model, b=batch: contribution(m, b),
                lambda m=model, b=batch: naive_contribution(m, b),
            ) | {"bound": 1.0}
    ours, peer = (grown_mb(_long_lens, how) for how in ("lens", "naive_lens"))
    name = "peak memory of the lens / of whole logits, V = 65536, L = 4, d = 128, batch 1, T = 1024"
    rows[name] = {"ours_mb": round(ours), "peer_mb": round(peer), "ratio": round(ours / peer, 3)}
    return rows


def _long_lens(how: str) -> Work:
    """Return a lens on a long prompt over a large vocabulary, after one on a short prompt."""
    look = {"lens": lens, "naive_lens": naive_lens}[how]
    model = random_llama(n_layers=4, d_model=128, d_vocab=65536)
    look(model, random_batch(model, batch=1, n_pos=8))
    batch = random_batch(model, batch=1, n_pos=1024)
    return lambda: look(model, batch)
