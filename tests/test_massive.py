"""One definition of a massive activation, by hand, and the two analyses that use it agree."""

import pytest
import torch

import interp
from interp.analyses.stream_statistics import StreamStatistics
from interp.analyses.stream_statistics.result import STATISTICS
from interp.analyses.void_detection import VoidDetection
from interp.sweeps.massive import massive_activations
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_rule_by_hand() -> None:
    resid = torch.full((1, 3, 4), 0.25)  # 1,000 times the median is 250
    resid[0, 0, 1], resid[0, 1, 2], resid[0, 2, 3] = -250.0, 249.0, 900.0
    assert massive_activations(resid).nonzero().tolist() == [[0, 0, 1], [0, 2, 3]]
    resid /= 10  # not above 100, however far above the median
    assert not massive_activations(resid).any()
    assert massive_activations(resid, above=24.0, ratio=1000.0).sum() == 2


def test_the_median_is_that_of_the_prompts_hidden_state() -> None:
    resid = torch.full((2, 4, 5), 0.1)
    resid[:, 0] = 3.0  # 200 is 67 times the token's own median, but 2,000 times the prompt's
    resid[:, 0, 2] = 200.0
    resid[1, 1:] = 0.3  # here 667 times the prompt's
    assert massive_activations(resid).nonzero().tolist() == [[0, 0, 2]]


def test_padding_has_no_part_in_the_median() -> None:
    resid = torch.full((1, 6, 3), 0.5)
    resid[0, 0, 0], resid[0, 2:] = 300.0, 0.0
    mask = torch.tensor([[True, True, False, False, False, False]])
    assert massive_activations(resid).any()
    assert not massive_activations(resid, mask=mask).any()


@torch.no_grad()
def test_both_analyses_find_the_same_tokens() -> None:
    model, batch = tiny("llama"), tokens(n_pos=11)
    rule = {"massive_above": 1.0, "massive_ratio": 6.0}
    recording = model.record(batch)
    counted = StreamStatistics(**rule).measure(recording, batch, {})["statistics"]
    n_massive = counted[:, :, 0, STATISTICS.index("massive activations")]
    marked = VoidDetection(max_new_tokens=0, **rule).measure(recording, batch, {})
    taps = [recording.resid(tap) for tap in range(model.n_layers + 1)]
    found = torch.stack([massive_activations(r, above=1.0, ratio=6.0) for r in taps])
    assert 0 < int(found.sum()) < found.numel()
    assert torch.equal(marked["prompt.massive"], found.any(-1).any(0))
    assert torch.equal(n_massive, found.sum((2, 3)).T.float())


def test_a_small_model_has_none() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=4)
    frame = StreamStatistics().run(model, task).to_frame()
    assert (frame.loc[frame["measure"] == "massive activations", "max"] == 0).all()
