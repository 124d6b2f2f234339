"""What routes give to prompts that no router has met, beside sets that are fixed for all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.layer_routers.figure import figure_of
from interp.analyses.layer_routers.findings import findings_of
from interp.analyses.layer_routers.rates import Array, at_rate, macro_f1
from interp.analyses.layer_routers.routes import SCORES, set_sizes
from interp.analyses.layer_routers.testing import CONTROLS, FULL, PATHS
from interp.result import Finding, Result
from interp.stats.estimate import Estimate, estimate
from interp.stats.groups import Groups
from interp.stats.shares import share, share_difference

if TYPE_CHECKING:
    from interp.analyses.layer_routers import LayerRouters

_KEYS = ("statistic", "routes", "at_rate_of", "layer", "n_skipped")


@dataclass(frozen=True, repr=False)
class LayerRoutersResult(Result):
    """Arrays of all prompts: see `LayerRouters.measure`; only those of the test third count."""

    analysis: "LayerRouters"
    arrays: dict[str, np.ndarray]

    def of_test(self, name: str) -> np.ndarray:
        """Return an array's rows of test prompts."""
        rows: np.ndarray = self.arrays[name][self.arrays["is_test"].astype(bool)]
        return rows

    @property
    def test_groups(self) -> Groups | None:
        """Return the groups of the test prompts."""
        return self.groups_of(self.arrays["is_test"].astype(bool))

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return int(self.arrays[f"visits.{PATHS}"].shape[1])

    @property
    def rules(self) -> tuple[str, ...]:
        """Return the rules that were trained."""
        return self.analysis.rules

    def scores(self, routes: str, score: str = SCORES[0]) -> Array:
        """Return a score [prompt] of a rule's routes, of the full model, or of the right paths."""
        values = self.of_test(f"scores.{routes}")[:, SCORES.index(score)]
        return values.astype(np.float64)

    def runs(self, routes: str) -> Array:
        """Return how many layers each test prompt runs [prompt], repeats included."""
        if routes == FULL:
            return np.full(len(self.of_test(f"scores.{FULL}")), float(self.n_layers))
        runs: Array = self.of_test(f"visits.{routes}").sum(1).astype(np.float64)
        return runs

    def fixed(self, rule: str, control: str = CONTROLS[0], score: str = SCORES[0]) -> Array:
        """Return a control's score [prompt] where it leaves as many layers as a rule runs."""
        return self._fixed(rule, control, score)[0]

    def _fixed(self, rule: str, control: str, score: str) -> tuple[Array, Array]:
        by_size = self.of_test("controls")[:, CONTROLS.index(control), :, SCORES.index(score)]
        runs = self.runs(rule)
        return at_rate(by_size, float(runs.mean()) if len(runs) else 0.0, self.n_layers)

    def above_fixed(
        self, rule: str, control: str = CONTROLS[0], score: str = SCORES[0]
    ) -> Estimate:
        """Return by how much a rule's score is above a control's at the same number of runs.

        That number is known from the same prompts, so its error is part of the interval (by the
        delta method).
        """
        own, runs = self.scores(rule, score), self.runs(rule)
        fixed, slope = self._fixed(rule, control, score)
        if not len(own) or (score == SCORES[0] and (own == fixed).all()):
            return share_difference(own, fixed, groups=self.test_groups)
        per_run = slope.mean()
        return self.estimate(own - fixed - per_run * (runs - runs.mean()))

    def saved(self, rule: str) -> Array:
        """Return the share of multiply-adds that a rule saves [prompt], less its own cost."""
        saved: Array = 1 - self.runs(rule) / self.n_layers - self.of_test(f"own.{rule}")
        return saved

    def lost(self, rule: str) -> Estimate:
        """Return the accuracy by a rule less the full model's."""
        return share_difference(self.scores(rule), self.scores(FULL), groups=self.test_groups)

    def estimate(self, values: Array) -> Estimate:
        """Return the mean over test prompts with its interval."""
        return estimate(values, groups=self.test_groups, seed=self.analysis.seed)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per statistic, kind of routes, control's rate, layer and set size.

        Columns: statistic, routes, at_rate_of, layer, n_skipped, mean, low, high, n_prompts.

        "accuracy" and "log_prob" (nats) of the full model, rules and right paths; of a set of
        layers skipped for all by its size, and at the rate of a rule. "layer runs" and "net saved"
        are shares of the model's layers and multiply-adds, "routers' own cost" is a share of those
        too; "runs" how often a layer runs. "router accuracy" and "router macro-F1" say how well the
        supervised routers name what runs on right paths, "always run" the same of one run each.
        "accuracy elsewhere" is on the other task.
        """
        rows = [*self._rule_rows(), *self._control_rows(), *self._layer_rows(), *self._elsewhere()]
        frame = pd.DataFrame(rows).reindex(columns=[*_KEYS, "mean", "low", "high", "n_prompts"])
        return frame.astype({"layer": "Int64", "n_skipped": "Int64"})

    def _row(self, statistic: str, value: Estimate | Array, **keys: object) -> dict[str, object]:
        known = value if isinstance(value, Estimate) else self.estimate(value)
        return (
            dict.fromkeys(_KEYS)
            | {"statistic": statistic, "at_rate_of": ""}
            | keys
            | known.columns()
        )

    def _score(self, score: str, values: Array, **keys: object) -> dict[str, object]:
        known = share(values, groups=self.test_groups) if score == SCORES[0] else values
        return self._row(score, known, **keys)

    def _rule_rows(self) -> Iterator[dict[str, object]]:
        for routes in (FULL, *self.rules, PATHS):
            for score in SCORES:
                yield self._score(score, self.scores(routes, score), routes=routes)
            yield self._row("layer runs", self.runs(routes) / self.n_layers, routes=routes)
        for rule in self.rules:
            yield self._row("routers' own cost", self.of_test(f"own.{rule}"), routes=rule)
            yield self._row("net saved", self.saved(rule), routes=rule)

    def _control_rows(self) -> Iterator[dict[str, object]]:
        for i, control in enumerate(CONTROLS):
            for j, score in enumerate(SCORES):
                by_size = self.of_test("controls")[:, i, :, j].astype(np.float64)
                for size, values in zip(set_sizes(self.n_layers), by_size.T, strict=True):
                    yield self._score(score, values, routes=control, n_skipped=size)
                for rule in self.rules:
                    keys = {"routes": control, "at_rate_of": rule}
                    yield self._score(score, self.fixed(rule, control, score), **keys)
                    gain = self.above_fixed(rule, control, score)
                    yield self._row(f"{score} above control", gain, **keys)

    def _layer_rows(self) -> Iterator[dict[str, object]]:
        for routes in (*self.rules, PATHS):
            visits = self.of_test(f"visits.{routes}").astype(np.float64)
            for layer in range(self.n_layers):
                yield self._row("runs", visits[:, layer], routes=routes, layer=layer)
        if "said" not in self.arrays:
            return
        is_right = self.of_test("is_right").astype(bool)
        labels, said = (self.of_test(key)[is_right] for key in (f"visits.{PATHS}", "said"))
        for name, named in (("router", said), ("always run", np.ones_like(labels))):
            for layer in (None, *range(self.n_layers)):
                at = slice(None) if layer is None else slice(layer, layer + 1)
                one, other = labels[:, at], named[:, at]
                keys = {"routes": "supervised", "layer": layer}
                right = float((one == other).mean()) if len(one) else np.nan
                yield self._row(f"{name} accuracy", Estimate(right, n=len(one)), **keys)
                f1 = macro_f1(one, other) if len(one) else np.nan
                yield self._row(f"{name} macro-F1", Estimate(f1, n=len(one)), **keys)

    def _elsewhere(self) -> Iterator[dict[str, object]]:
        if "other" not in self.arrays:
            return
        ways = [(FULL, "")]
        ways += [way for rule in self.rules for way in ((rule, ""), (CONTROLS[0], rule))]
        for (routes, rule), row in zip(ways, self.arrays["other"][0], strict=True):
            mean, low, high, n, rate = (float(value) for value in row)
            keys = {"routes": routes, "at_rate_of": rule}
            yield self._row("accuracy elsewhere", Estimate(mean, low, high, int(n)), **keys)
            yield self._row("layer runs elsewhere", Estimate(rate, n=int(n)), **keys)

    def plot(self) -> go.Figure:
        """Draw accuracy against the layers that run, and how often each layer runs."""
        return figure_of(self)

    def findings(self) -> tuple[Finding, ...]:
        """Return what each rule gains on a fixed set, and what it saves net of its own cost."""
        return findings_of(self)
