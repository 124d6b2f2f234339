"""The lens's measures as curves over depth, over prompts, and the depths made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from interp.analyses.logit_lens.depths import KLFrom, depth_by_cosine, depth_by_kl, depth_by_overlap
from interp.analyses.logit_lens.guesses import of_guesses
from interp.analyses.logit_lens.measures import (
    COSINE,
    FIRST,
    LENS_FINAL,
    OF_ANSWER,
    answered,
    at_positions,
    over_positions,
)
from interp.stats.estimate import Estimate, estimate_of, estimates
from interp.stats.groups import Groups
from interp.stats.shares import shares
from interp.sweeps.positions import first_read

if TYPE_CHECKING:
    from interp.analyses.logit_lens import LogitLens

WITH_FIRST = "position 0 included"
PUBLISHED = "KL, as published"


@dataclass(frozen=True)
class Curves:
    """Readings [prompt tap pos reading] and guesses [prompt tap pos], aligned at the end.

    `cosines` are [prompt layer part].
    """

    analysis: "LogitLens"
    readings: np.ndarray
    cosines: np.ndarray
    guesses: np.ndarray | None
    groups: Groups | None

    @property
    def n_layers(self) -> int:
        """Return the number of layers; there is one tap more."""
        return len(self.cosines[0])

    @property
    def overlap(self) -> str:
        """Return the name of the overlap."""
        return f"top-{self.analysis.top_k} overlap"

    @cached_property
    def at_positions(self) -> dict[str, np.ndarray]:
        """Return every measure [prompt tap pos]."""
        at = at_positions(self.readings, overlap=self.overlap)
        if self.guesses is None:
            return at
        n_pad = self.readings.shape[2] - self._n_pos
        return at | of_guesses(self.guesses, begin=n_pad + first_read(self.analysis.first_position))

    @cached_property
    def of_prompts(self) -> dict[str, np.ndarray]:
        """Return every measure [prompt tap], a mean over positions; the answer's at the last.

        Where position 0 is left out, means over positions are also given with it.
        """
        is_left_out = bool(first_read(self.analysis.first_position))
        n_pad = self.readings.shape[2] - self._n_pos
        values = over_positions(self.at_positions, left_out=n_pad if is_left_out else None)
        values |= {COSINE: np.ma.masked_invalid(self.cosines).mean(2).filled(np.nan)}
        if is_left_out:
            of_tokens = {n: v for n, v in self.at_positions.items() if n not in OF_ANSWER}
            means = over_positions(of_tokens, left_out=None)
            values |= {f"{name}, {WITH_FIRST}": with_first for name, with_first in means.items()}
        return values

    @property
    def _n_pos(self) -> np.ndarray:
        return np.asarray((~np.isnan(self.readings[:, 0, :, 0])).sum(1))

    def _weights(self, measure: str) -> np.ndarray | None:
        """Return every prompt's tokens if they weigh prompts in the mean of a measure."""
        if self.analysis.weighting == "prompt" or measure in OF_ANSWER:
            return None
        is_first_in = measure.endswith(WITH_FIRST)
        return self._n_pos - (0.0 if is_first_in else first_read(self.analysis.first_position))

    def _groups(self, measure: str) -> Groups | None:
        if self.groups is None or measure not in OF_ANSWER:
            return self.groups
        of_answer: Groups = self.groups[answered(self.readings)]
        return of_answer

    @cached_property
    def estimates(self) -> dict[str, dict[str, np.ndarray]]:
        """Return every measure's mean, low and high [tap]."""
        return {name: self._columns(name) for name in self.of_prompts}

    def _columns(self, measure: str) -> dict[str, np.ndarray]:
        values, groups = self.of_prompts[measure], self._groups(measure)
        if measure == FIRST:
            return shares(values, groups=groups)
        weights, seed = self._weights(measure), self.analysis.seed
        return estimates(values, weights=weights, groups=groups, seed=seed)

    @cached_property
    def depths(self) -> dict[str, Estimate]:
        """Return effective depths as shares of all layers; infinite where never reached.

        Beside the three are those with position 0, and that by KL as published.
        """
        kl_from = self.analysis.kl_from
        has_both = bool(first_read(self.analysis.first_position))
        depths = {
            "KL": self._depth_of(LENS_FINAL, self._by_kl(kl_from)),
            "overlap": self._depth_of(self.overlap, self._by_overlap),
            "cosine": self._depth_of(COSINE, depth_by_cosine, after=True),
        }
        all_kl = f"{LENS_FINAL}, {WITH_FIRST}" if has_both else LENS_FINAL
        if has_both or kl_from != "as published":
            depths[PUBLISHED] = self._depth_of(all_kl, self._by_kl("as published"))
        if has_both:
            depths[f"KL, {WITH_FIRST}"] = self._depth_of(all_kl, self._by_kl(kl_from))
            all_overlap = f"{self.overlap}, {WITH_FIRST}"
            depths[f"overlap, {WITH_FIRST}"] = self._depth_of(all_overlap, self._by_overlap)
        return depths

    def _by_kl(self, since: KLFrom) -> Callable[[np.ndarray], int | None]:
        return partial(depth_by_kl, share=self.analysis.kl_share, since=since)

    def _by_overlap(self, curve: np.ndarray) -> int | None:
        return depth_by_overlap(curve, above=self.analysis.overlap_above)

    def _depth_of(
        self, measure: str, layer_of: Callable[[np.ndarray], int | None], *, after: bool = False
    ) -> Estimate:
        """Return the share of layers that have run where a curve has its layer.

        A lens reads before its layer, a write is known `after` it.
        """

        def share(curve: np.ndarray) -> float:
            layer = layer_of(curve)
            return np.inf if layer is None else (layer + int(after)) / self.n_layers

        return estimate_of(
            share,
            self.of_prompts[measure][:, : self.n_layers],
            weights=self._weights(measure),
            groups=self._groups(measure),
            seed=self.analysis.seed,
        )

    def layer(self, name: str) -> int | None:
        """Return the 0-based layer of an effective depth; None where it is never reached."""
        value = self.depths[name].value
        return None if np.isinf(value) else round(value * self.n_layers) - int(name == "cosine")
