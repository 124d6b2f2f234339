"""How far each lens is from the final prediction, layer by layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.affine_lens.findings import findings_of
from interp.figures.plots import lines_over_depth
from interp.result import Finding, Result
from interp.stats.beyond import beyond
from interp.stats.estimate import Estimate, estimate, estimates
from interp.sweeps.lens import READINGS
from interp.sweeps.positions import positions_read

if TYPE_CHECKING:
    from interp.analyses.affine_lens import AffineLens

LENSES = AFFINE, LOGIT, SHUFFLED, MEAN = (
    "affine lens",
    "logit lens",
    "shuffled layers",
    "mean alone",
)
MEASURES = (
    "KL(lens‖final), nats",
    "KL(final‖lens), nats",
    "top-5 overlap",
    "answer probability",
    "answer rank",
    "entropy, nats",
    "margin of the first guess, nats",
)
KL, PROBABILITY, RANK = MEASURES[1], MEASURES[3], MEASURES[4]
NEARER = "logit lens minus affine lens"


@dataclass(frozen=True, repr=False)
class AffineLensResult(Result):
    """`arrays["readings"]` [prompt lens layer reading], of `LENSES` and `MEASURES`.

    `arrays["ridge"]` [prompt layer] and `arrays["twins"]` [prompt twin 2 layer], KL(final‖lens) of
    the affine and the logit lens in untrained twins, are the same for all prompts.
    """

    analysis: "AffineLens"
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers, each read before it."""
        return int(self.arrays["readings"].shape[2])

    def values(self, lens: str, measure: str) -> np.ndarray:
        """Return a lens's measure [prompt layer] in fp64, of the prompts that have it."""
        index = LENSES.index(lens), slice(None), MEASURES.index(measure)
        values = self.arrays["readings"][:, *index].astype(np.float64)
        return np.asarray(values[self._known(measure)])

    def _known(self, measure: str) -> np.ndarray:
        rank = self.arrays["readings"][:, 0, 0, READINGS.index("answer_rank")]
        is_any = measure not in (PROBABILITY, RANK)
        return np.asarray((rank >= 0) | is_any)

    def kl(self, lens: str, layer: int) -> Estimate:
        """Return a lens's KL(final‖lens) before a layer, in nats."""
        values = self.values(lens, KL)[:, layer]
        return estimate(values, groups=self.prompt_groups, seed=self.analysis.seed)

    @property
    def nearer(self) -> np.ndarray:
        """Return by how many nats of KL the affine lens is nearer than the logit lens [prompt].

        It is the mean over layers without the first, which the stream enters as embeddings: the
        logit lens is so far off there that it would decide the mean.
        """
        return _behind_the_embedding(self.values(LOGIT, KL) - self.values(AFFINE, KL))

    @property
    def twins_nearer(self) -> np.ndarray:
        """Return the same in every untrained twin [twin]; none without the control."""
        if "twins" not in self.arrays:
            return np.empty(0)
        affine, logit = np.moveaxis(self.arrays["twins"][0].astype(np.float64), 1, 0)
        return _behind_the_embedding(logit - affine)

    def gain(self) -> Estimate:
        """Return `nearer` over prompts."""
        return estimate(self.nearer, groups=self.prompt_groups, seed=self.analysis.seed)

    def gain_beyond(self) -> Estimate:
        """Return how much larger the gain is than in untrained twins.

        The interval is of one more twin against those: it knows the prompts, and how much twins
        differ from each other.
        """
        return beyond(self.gain(), self.twins_nearer)

    def to_frame(self) -> pd.DataFrame:
        """Return columns lens, measure, layer, mean, median, low, high, n_prompts.

        Before every layer, means over prompts with 95 % intervals over groups of them: of the
        four lenses, and of by how much the affine lens is nearer in KL. "untrained, LENS" is the
        mean over untrained twins, without an interval; "ridge" is in units of the mean eigenvalue.
        """
        frames = pd.concat([*self._lens_rows(), *self._other_rows()], ignore_index=True)
        return frames.astype({"n_prompts": "Int64"})

    def _lens_rows(self) -> Iterator[pd.DataFrame]:
        for lens in LENSES:
            for measure in MEASURES:
                if len(values := self.values(lens, measure)):
                    yield self._rows(lens, measure, values)
        yield self._rows(NEARER, KL, self.values(LOGIT, KL) - self.values(AFFINE, KL))

    def _rows(self, lens: str, measure: str, values: np.ndarray) -> pd.DataFrame:
        groups = self.groups_of(self._known(measure))
        columns = estimates(values, groups=groups, seed=self.analysis.seed)
        keys = {"lens": lens, "measure": measure, "layer": np.arange(self.n_layers)}
        return pd.DataFrame(keys | {"median": np.median(values, axis=0)} | columns)

    def _other_rows(self) -> Iterator[pd.DataFrame]:
        layers = {"layer": np.arange(self.n_layers), "low": np.nan, "high": np.nan}
        nothing = {"median": np.nan, "n_prompts": pd.NA}
        ridge = self.arrays["ridge"][0].astype(np.float64)
        yield pd.DataFrame({"lens": AFFINE, "measure": "ridge", "mean": ridge} | layers | nothing)
        for i, lens in enumerate((AFFINE, LOGIT) if "twins" in self.arrays else ()):
            mean = self.arrays["twins"][0, :, i].astype(np.float64).mean(0)
            yield pd.DataFrame(
                {"lens": f"untrained, {lens}", "measure": KL, "mean": mean} | layers | nothing
            )

    def plot(self) -> go.Figure:
        """Draw the KL of all lenses, and the answer's probability where there are answers."""
        frame = pd.concat([*self._lens_rows()], ignore_index=True)
        shown = {KL: "KL(final‖lens), nats", MEASURES[2]: MEASURES[2]}
        shown |= {PROBABILITY: "answer probability, last position"}
        frame["panel"] = frame["measure"].map(shown)
        frame = frame[frame["lens"].isin(LENSES)].dropna(subset="panel")
        title = (
            "What each lens reads before every layer, mean over"
            f" {positions_read(self.analysis.first_position)}"
        )
        return lines_over_depth(frame, y="mean", groups="lens", panels="panel", title=title)

    def findings(self) -> tuple[Finding, ...]:
        """Return how much nearer the affine lens is, how near half-way, and the logit lens."""
        return findings_of(self)


def _behind_the_embedding(values: np.ndarray) -> np.ndarray:
    """Return the mean of values [... layer] over all layers but the first, if there are others."""
    return np.asarray(values[..., min(1, values.shape[-1] - 1) :].mean(-1))
