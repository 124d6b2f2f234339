"""What two models are worth joined at every cut, block by block, and by their weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from interp.analyses.checkpoint_stitch.blocks import KINDS, SHARES
from interp.analyses.checkpoint_stitch.changes import CHANGED
from interp.analyses.checkpoint_stitch.cuts import ACCURACY, OUTCOMES
from interp.analyses.checkpoint_stitch.figure import drawn
from interp.analyses.checkpoint_stitch.findings import findings_of
from interp.analyses.checkpoint_stitch.maps import n_fitted
from interp.result import Finding, Result
from interp.stats.estimate import estimates
from interp.stats.shares import shares
from interp.sweeps.similarity import example_similarity

if TYPE_CHECKING:
    from interp.analyses.checkpoint_stitch import CheckpointStitch

MEASURES = {
    "log_prob": "log-probability of the answer, nats",
    "accuracy": "accuracy",
    "kl": "KL from the other model, nats",
}
DIRECTIONS = ("this below, other above", "other below, this above")
_STATES = {
    "difference": "relative difference of the streams",
    "lens_kl": "KL between the logit lenses, nats",
}
_COLUMNS = ["what", "map", "direction", "cut", "layer", "matrix", "share", "measure"]
_FEWEST_SIMILAR = 8  # prompts that CKA compares


@dataclass(frozen=True, repr=False)
class CheckpointStitchResult(Result):
    """Arrays, prompts first: what `CheckpointStitch.measure` returns."""

    analysis: "CheckpointStitch"
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers of both models."""
        return int(self.arrays["weights"].shape[1])

    @property
    def cuts(self) -> list[int]:
        """Return how many layers of the lower model run, at every cut."""
        return self.analysis.cuts(self.n_layers)

    @property
    def best_map(self) -> str:
        """Return the first fitted map, which findings are about; "none" where none is."""
        return str([*self.analysis.fitted, "none"][0])

    @property
    def has_untrained(self) -> bool:
        """Tell whether an untrained model was in the other's place too."""
        return "untrained" in self.arrays

    def curve(self, kind: str, outcome: str, *, of: str = "cut") -> np.ndarray:
        """Return an outcome [prompt 2 cut] under a map; `of` "untrained" is the control's."""
        return self._column(f"{of} {kind}", outcome)

    def plain(self, outcome: str, *, of: str = "plain") -> np.ndarray:
        """Return an outcome [prompt 2] of this model and of the other (or "untrained") one."""
        return self._column(of, outcome)

    def alone(self, kind: str, outcome: str) -> np.ndarray | None:
        """Return an outcome [prompt layer] of single blocks; None where it was not measured."""
        return self._column(f"alone {kind}", outcome) if f"alone {kind}" in self.arrays else None

    def _column(self, name: str, outcome: str) -> np.ndarray:
        values: np.ndarray = self.arrays[name][..., OUTCOMES.index(outcome)].astype(np.float64)
        return values

    def interaction(self, kind: str, outcome: str = "log_prob", *, of: str = "cut") -> np.ndarray:
        """Return m(BB) - m(BA) - m(AB) + m(AA) [prompt cut]; the first letter is below the cut."""
        curve = self.curve(kind, outcome, of=of)
        plain = self.plain(outcome, of="plain" if of == "cut" else of)
        own, other = (plain[:, [i]] for i in (0, 1))
        return np.asarray((other - curve[:, 1]) - (curve[:, 0] - own))

    @property
    def random(self) -> np.ndarray | None:
        """Return KL from copies with the change permuted [prompt draw]; None without any."""
        values = self.arrays.get("random")
        return None if values is None or not values.shape[1] else values.astype(np.float64)

    def to_frame(self) -> pd.DataFrame:
        """Return columns what, map, direction, cut, layer, matrix, share, measure, mean, low, ….

        What: "plain" (this model, the other), "cut" and "untrained" (an untrained model in the
        other's place) by `map`, `direction` and `cut`, "interaction" by cut; "swap", "skip",
        "unrelated" and "permuted" by `layer`; "between" by the `share` of one block's change;
        "random", KL from each copy (named by `direction`) with the whole change permuted;
        "streams" by `cut`; "weights" by `layer` and `matrix`; "fit", the tokens and numbers of
        maps. Intervals (95 %) are over groups of prompts.
        """
        rows = [*self._plain_rows(), *self._cut_rows(), *self._alone_rows(), *self._stream_rows()]
        rows += [*self._random_rows(), self._weight_rows(), *self._fit_rows()]
        columns = [*_COLUMNS, "mean", "low", "high", "n_prompts"]
        frame = pd.concat([each.reindex(columns=columns) for each in rows], ignore_index=True)
        for column in ("map", "direction", "matrix"):
            frame[column] = frame[column].fillna("").astype("str")
        floats = dict.fromkeys(("share", "mean", "low", "high"), "float64")
        return frame.astype(dict.fromkeys(("cut", "layer", "n_prompts"), "Int64") | floats)

    def _rows(self, keys: dict[str, Any], values: np.ndarray, outcome: str) -> pd.DataFrame:
        is_share = outcome == ACCURACY and keys["what"] != "interaction"
        found = (
            shares(values, groups=self.prompt_groups)
            if is_share
            else estimates(values, groups=self.prompt_groups, seed=self.analysis.seed)
        )
        return pd.DataFrame(keys | {"measure": MEASURES.get(outcome, outcome)} | found)

    def _plain_rows(self) -> Iterator[pd.DataFrame]:
        for of in ("plain", "untrained") if self.has_untrained else ("plain",):
            names = ["this model", "untrained" if of == "untrained" else "the other model"]
            for outcome in OUTCOMES:
                rows = self._rows(
                    {"what": "plain", "direction": names}, self.plain(outcome, of=of), outcome
                )
                yield rows[1:] if of == "untrained" else rows

    def _cut_rows(self) -> Iterator[pd.DataFrame]:
        for of in ("cut", "untrained") if self.has_untrained else ("cut",):
            for kind in self.analysis.maps:
                for outcome in OUTCOMES:
                    curve = self.curve(kind, outcome, of=of)
                    for i, direction in enumerate(DIRECTIONS):
                        keys = {"what": of, "map": kind, "direction": direction, "cut": self.cuts}
                        yield self._rows(keys, curve[:, i], outcome)
                for outcome in OUTCOMES[:2]:
                    values = self.interaction(kind, outcome, of=of)
                    whose = "untrained" if of == "untrained" else ""
                    keys = {"what": "interaction", "map": kind, "direction": whose}
                    yield self._rows(keys | {"cut": self.cuts}, values, outcome)

    def _alone_rows(self) -> Iterator[pd.DataFrame]:
        layers = self.analysis.layers(self.n_layers)
        for kind in KINDS:
            for outcome in OUTCOMES:
                values = self.alone(kind, outcome)
                if values is not None:
                    yield self._rows({"what": kind, "layer": layers}, values, outcome)
        block = int(self.arrays["block"][0])
        for outcome in OUTCOMES:
            keys = {"what": "between", "layer": block, "share": [*SHARES]}
            yield self._rows(keys, self._column("between", outcome), outcome)

    def _random_rows(self) -> Iterator[pd.DataFrame]:
        if self.random is not None:
            names = [f"copy {i}" for i in range(self.random.shape[1])]
            measure = "KL from the model with the change permuted, nats"
            yield self._rows({"what": "random", "direction": names}, self.random, measure)

    def _stream_rows(self) -> Iterator[pd.DataFrame]:
        taps = np.arange(self.n_layers + 1)
        for name, measure in _STATES.items():
            yield self._rows({"what": "streams", "cut": taps}, self.arrays[name], measure)
        n = len(self.arrays["plain"])
        keys = {"what": "streams", "cut": taps, "measure": "CKA (debiased)", "n_prompts": n}
        yield pd.DataFrame(keys | {"mean": self.cka})

    @property
    def cka(self) -> np.ndarray:
        """Return the debiased CKA of prompts' mean streams, by layer; NaN of few prompts."""
        pooled = torch.from_numpy(self.arrays["pooled"].astype(np.float32))
        if len(pooled) < _FEWEST_SIMILAR:
            return np.full(self.n_layers + 1, np.nan)
        x, y = pooled.permute(1, 2, 0, 3)
        each = [
            example_similarity(a[None], b[None], torch.ones(1, len(pooled)), kind="cka")
            for a, b in zip(x, y, strict=True)
        ]
        return torch.cat(each).flatten().numpy()

    @property
    def matrices(self) -> list[str]:
        """Return the names of a block's matrices."""
        return bytes(self.arrays["names"][0]).decode().split("\n")

    def _weight_rows(self) -> pd.DataFrame:
        weights = self.arrays["weights"][0].astype(np.float64)
        layers, matrices, measures = (axis.ravel() for axis in np.indices(weights.shape))
        rows = {
            "what": "weights",
            "layer": layers,
            "matrix": np.array(self.matrices)[matrices],
            "measure": np.array(CHANGED)[measures],
            "mean": weights.ravel(),
        }
        return pd.DataFrame(rows)

    def _fit_rows(self) -> Iterator[pd.DataFrame]:
        d, tokens = self.arrays["pooled"].shape[-1], float(self.arrays["tokens"][0].min())
        for kind in self.analysis.fitted:
            measures = ["tokens that a map is fitted on", "numbers that a map has"]
            numbers = [tokens, float(n_fitted(kind, d))]
            yield pd.DataFrame({"what": "fit", "map": kind, "measure": measures, "mean": numbers})

    def change_in_log_prob(self, kind: str) -> np.ndarray | None:
        """Return by how much single blocks change the answer's log-probability [prompt layer]."""
        values = self.alone(kind, "log_prob")
        return None if values is None else values - self.plain("log_prob")[:, :1]

    def plot(self) -> go.Figure:
        """Draw accuracy by cut, without and with a map, and what single blocks change."""
        return drawn(self)

    def findings(self) -> tuple[Finding, ...]:
        """Return where the change lives, whether late layers need it early, and what swaps cost."""
        return findings_of(self)
