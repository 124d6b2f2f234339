"""Exits with and without hindsight, and what a rule gains beyond its mean depth."""

import numpy as np
import pytest
import torch

from interp.analyses.oracle_exit import OracleExit
from interp.analyses.oracle_exit.result import (
    OracleExitResult,
    first_agreeing,
    first_stable,
)
from interp.errors import AnalysisError
from interp.models import Model
from interp.stats.estimate import estimate
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def test_exits_by_hand() -> None:
    choice = np.array([[5, 7, 5, 7, 7], [1, 1, 2, 3, 3], [4, 4, 4, 4, 4], [1, 2, 3, 4, 5]])
    assert first_agreeing(choice).tolist() == [1, 3, 0, 4]
    assert first_agreeing(choice, is_settled=True).tolist() == [3, 3, 0, 4]
    assert first_stable(choice, 2).tolist() == [4, 1, 1, 4]
    assert first_stable(choice, 3).tolist() == [4, 4, 2, 4]
    result = OracleExit(stable_for=(2,)).combine(
        [{"choice": torch.tensor(choice), "answer": torch.tensor([7, 3, 4, 9])}]
    )
    assert result.score(first_stable(choice, 2), "accuracy").tolist() == [1, 0, 1, 0]
    exits = first_stable(choice, 2)  # 2.5 on average: half of the prompts leave at 2, half at 3
    assert result.fixed(exits, "accuracy").tolist() == [0.5, 0.5, 1, 0]
    assert result.above_fixed(exits, "accuracy").value == 0  # exits score 1, 0, 1, 0
    rows = result.to_frame().query("statistic == 'rule' and score == 'accuracy'").set_index("rule")
    assert rows.loc["oracle", "mean"] == 0.75
    assert rows.loc["oracle", "difference"] == 0
    assert rows.loc["same choice 2 times", "depth"] == pytest.approx(10 / 16)


def test_the_gain_of_a_rule_resamples_the_depth_of_its_control() -> None:
    rng = np.random.default_rng(0)
    choice = np.where(
        rng.random((200, 9)) < np.linspace(0.1, 0.9, 9), 1, rng.integers(2, 4, (200, 9))
    )
    result = OracleExitResult(OracleExit(), choice, np.ones(200, np.int64))
    exits = result.rules["same choice 2 times"]

    def recomputed(rows: np.ndarray) -> float:
        right = (choice[rows] == 1).mean(0)
        fixed = np.interp(exits[rows].mean(), np.arange(9), right)
        return float((choice[rows, exits[rows]] == 1).mean() - fixed)

    gain = result.above_fixed(exits, "accuracy")
    assert gain.value == pytest.approx(recomputed(np.arange(200)))
    again = [recomputed(rng.integers(0, 200, 200)) for _ in range(2000)]
    low, high = np.quantile(again, [0.025, 0.975])
    assert gain.high - gain.low == pytest.approx(high - low, rel=0.1)
    plain = estimate(result.score(exits, "accuracy") - result.fixed(exits, "accuracy"))
    assert plain.high - plain.low > 1.1 * (high - low)  # as if the depth were known


@torch.no_grad()
def test_the_oracle_always_agrees_and_choices_are_the_lens(model: Model) -> None:
    batch = tokens()
    recording = model.record(batch)
    recording.resid(0)
    clean = recording.work.block_tokens
    part = OracleExit().measure(recording, batch, {})
    assert recording.work.block_tokens == clean
    assert torch.equal(part["choice"][:, -1], model.logits(batch)[:, -1].argmax(-1))
    result = OracleExit().combine([part])
    for rule in ("oracle", "oracle, settled"):
        assert result.score(result.rules[rule], "agrees with the full model").all()


def test_bad_rules_are_one_line() -> None:
    with pytest.raises(AnalysisError, match="stable_for=1; at least 2 is needed"):
        OracleExit(stable_for=(1,))
    with pytest.raises(AnalysisError, match="stable_for=9; the model has 5 places"):
        OracleExit(stable_for=(9,)).check(tiny("llama"), tokens())
