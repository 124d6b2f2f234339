"""Path patching: equal to two forwards with hooks, frozen and recomputed, on several families."""

import pytest
import torch

import interp
from interp.analyses.patching_agreement import PatchingAgreement
from interp.analyses.path_patching import PathPatching
from interp.errors import AnalysisError
from interp.interventions import Patch
from interp.models import Model
from interp.models.untrained import untrained
from interp.sites import Site
from interp.sweeps.answers import SameLength
from interp.sweeps.exact_patching import clean_runs
from interp.sweeps.paths import Paths
from interp.sweeps.twins import Twins
from interp.sweeps.wiring import Wiring
from tests.families import tiny, tokens

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "bloom")
SENDERS = ("embed", "a0.h1", "m0", "a1.h3", "m1")


def twins_of(model: Model) -> Twins:
    clean, twin = tokens(batch=2, n_pos=6), tokens(batch=2, n_pos=6).tokens.clone()
    twin[:, 2] = torch.tensor([50, 51])
    ends = torch.tensor([[7], [8]])
    group = SameLength(torch.arange(2), model.record(clean), clean.tokens, ends, 5)
    return Twins(group, twin, torch.tensor([9, 10]), "logit_diff", "denoise")


def naive(model: Model, twins: Twins, sender: str, receiver: str, between: str) -> torch.Tensor:
    """Run twice with hooks: the direct path to what the receiver reads, and from there on."""
    recording, wiring = twins.clean.recording, Wiring.of(model)
    inner = [Site(kind, layer) for layer in range(model.n_layers) for kind in ("z", "mlp_out")]
    ends = [Site("resid_pre", 0), Site("resid_pre", 2)]
    base, source = (
        recording.forward(ids, capture=[*inner, *ends]).activations
        for ids in (twins.base, twins.source)
    )
    kind, layer, head = wiring.place(sender)
    plan = [Patch(Site("z", i), base[Site("z", i)]) for i in range(model.n_layers)]
    if between == "frozen":
        plan += [Patch(Site("mlp_out", i), base[Site("mlp_out", i)]) for i in range(model.n_layers)]
    if kind == "heads":
        shape = source[Site("z", layer)].shape
        z = source[Site("z", layer)].reshape(*shape[:2], wiring.n_heads, -1)
        own = base[Site("z", layer)].reshape(z.shape).clone()
        own[:, :, head] = z[:, :, head]
        plan.append(Patch(Site("z", layer), own.reshape(shape)))
    else:
        site = Site("mlp_out", layer) if kind == "mlp" else Site("resid_pre", 0)
        plan.append(Patch(site, source[site]))
    kind, layer, head = wiring.place(receiver)
    if kind == "logits":
        return recording.forward(twins.base, plan=plan).logits[:, -1:]
    read = Site("mlp_pre" if kind == "mlp" else kind, layer)  # what the norm of the stream makes
    value = recording.forward(twins.base, plan=plan, capture=[read]).activations[read]
    units = None if kind == "mlp" else [head]
    part = value if units is None else value[:, :, units]
    return recording.forward(twins.base, plan=[Patch(read, part, units=units)]).logits[:, -1:]


@pytest.mark.parametrize("between", ["frozen", "recomputed"])
@pytest.mark.parametrize("receiver", ["logits", "q2.h1", "k2.h0", "v2.h0", "m2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_paths_are_two_forwards_with_hooks(family: str, receiver: str, between: str) -> None:
    model = tiny(family)
    if receiver == "m2" and family not in ("gpt2", "gpt_neox", "bloom"):
        pytest.skip("gated: two matrices read the stream")
    twins, base, source, values = clean_runs(twins_of(model).clean.recording, twins_of(model))
    paths = Paths(twins, base, source, Wiring.of(model), between)
    effects = paths.effects(SENDERS, [receiver])
    for i, sender in enumerate(SENDERS):
        logits = naive(model, twins, sender, receiver, between)
        expected = twins.value(logits) - values["base"]
        torch.testing.assert_close(effects[:, i], expected, atol=2e-5, rtol=1e-4)
    assert effects.abs().max() > 2e-4


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"senders": ("a9.h0",)}, "sender 'a9.h0'"),
        ({"receivers": ("q5",)}, "receiver 'q5'"),
        ({"receivers": ()}, "no receiver given"),
        ({"senders": ("m5",), "receivers": ("q2.h1", "m3")}, "stands behind q2.h1, m3"),
    ],
)
def test_names_that_are_not_there_are_refused(given: dict[str, tuple[str, ...]], why: str) -> None:
    model, task = interp.load_model("zoo/names-6l"), interp.load_task("ioi", n=4)
    with pytest.raises(AnalysisError, match=why):
        PathPatching(**given).run(model, task)


def test_paths_to_the_logits_find_the_heads_that_write_the_answer() -> None:
    model, task = interp.load_model("zoo/names-6l"), interp.load_task("ioi", n=24)
    result = PathPatching().run(model, task)
    frame = result.to_frame()
    assert list(frame["sender"][:2]) == ["embed", "L0H0"]
    assert frame["share"].sum() == pytest.approx(1, abs=0.35)  # but for the final norm
    most, beyond = result.findings()
    assert most.estimate.low > most.control.estimate.high
    assert beyond.kind == "compares"
    assert beyond.estimate.low > 0
    few = PathPatching(senders=("a5.h1", "m5")).run(model, task)
    both = frame[frame["sender"].isin(["L5H1", "MLP 5"])]
    assert few.to_frame()["mean"].to_numpy() == pytest.approx(both["mean"].to_numpy(), abs=1e-6)


def test_paths_of_an_untrained_model_claim_nothing() -> None:
    model, task = interp.load_model("zoo/names-6l"), interp.load_task("ioi", n=16)
    twin = untrained(model, seed=0)
    for finding in PathPatching().run(twin, task).findings():
        assert finding.kind == "describes" or not finding.estimate.excludes()


def test_edges_are_compared_with_exact_paths() -> None:
    model, task = interp.load_model("zoo/names-6l"), interp.load_task("ioi", n=4)
    agreement = PatchingAgreement(nodes=("mlp_out",), receivers=("logits", "v2.h3"))
    result = agreement.run(model, task)
    frame = result.to_frame().query("node == 'edges' and measure == 'pearson'")
    assert set(frame["method"]) == {"relevance", "attribution"}
    assert frame["value"].min() > 0.8
    to_logits = PathPatching().run(model, task).effects
    edges = result.edges["exact edges"]
    torch.testing.assert_close(
        torch.tensor(edges[:, : to_logits.shape[1]]), torch.tensor(to_logits)
    )
