"""Before which layer can a property be read from the stream by a linear probe?

A multinomial logistic probe per tap, judged on groups of prompts (entities, facts) that it has not
met. Two checks of what a probe's accuracy means: the control task of Hewitt & Liang (arXiv
1909.03368), a random label for every group, which only memory can name (selectivity = accuracy -
control); and the online code of Voita & Titov (arXiv 2003.12298), the bits that it takes to send
all labels to someone who has the stream. What a probe reads from the embedding (tap 0), or from
untrained models, is not the work of layers: findings are compared with both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.probe.fits import Fit, held_out, online_bits
from interp.analyses.probe.labels import (
    FIELDS,
    RIGHT,
    both,
    codes_of,
    control_labels,
    group_folds,
    in_order,
    label_for,
    most_frequent,
    prompt_folds,
    require_label,
    value_of,
)
from interp.analyses.probe.result import ProbeResult
from interp.analysis import Analysis, Cost
from interp.models import Model
from interp.models.untrained import twins_of
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.tags import bytes_of, keys_of, rows_of
from interp.sweeps.two_hop import last_logits, require_subject
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

N_TWINS = 5
N_ORDERS = 5
_FITS = 400.0
_FIRST_SEED = 2**21  # far from seeds that people train with
_LABEL_BYTES = 48


@dataclass(frozen=True)
class Probe(Analysis):
    """Read a label from the clean stream at one position, with a linear probe for every tap.

    `label`: "bridge", "answer", "wrong" or "subject" of a prompt, "right" (whether the model's
    first guess is the answer), or a tag; by default the first of bridge, tags and answer that suits
    the prompts. `position` "subject" is where the first-hop phrase ends. `l2` is the penalty in
    Σ -log p + l2/2 ‖W‖² of streams of length about 1, of which every coordinate has been divided by
    its deviation over the training prompts unless `scaling` is "none".
    """

    label: str | None = None
    position: Literal["last", "subject"] = "last"
    l2: Annotated[float, AtLeast(1e-4)] = 0.1
    scaling: Literal["z-score", "none"] = "z-score"
    seed: int = 0
    question: ClassVar[str] = "From which layer on can a property be read from the stream?"
    how: ClassVar[str] = (
        "A linear probe for every layer is fitted on some groups of prompts and judged on others."
        " Beside it: what it reads from the embedding and from untrained models, random labels for"
        " groups that only memory can name, and the bits that it takes to send all labels."
    )
    caveat: ClassVar[str] = (
        "That a property can be read does not say that the model uses it: patch or erase it to see."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for prompts without the label, or without a subject if it is read."""
        if self.label == RIGHT:
            require_answers(shard)
        elif self.label is not None:
            require_label(shard.prompts, self.label)
        if self.position == "subject":
            require_subject(shard)

    def check_all(self, model: Model, shards: Sequence[TokenBatch]) -> None:
        """Raise AnalysisError for too few groups of prompts, or groups that do not repeat."""
        label_for([prompt for shard in shards for prompt in shard.prompts], self.label)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return what the probes say of every prompt, in the order of "keys" (see `measure`).

        Raises AnalysisError if answers are probed for and all are right, or none.
        """
        batches = [model.tokenize(shard) for shard in model.shards(task)]
        prompts = [prompt for batch in batches for prompt in batch.prompts]
        label = label_for(prompts, self.label)
        streams, is_right = self._streams(model, batches, with_right=label == RIGHT)
        labels = both(is_right) if label == RIGHT else codes_of(prompts, label)
        groups = torch.cat([batch.groups for batch in batches]).numpy()
        found = self._probed(streams, labels, groups) | self._of_twins(
            model, batches, labels, groups
        )
        names = bytes_of([label], width=_LABEL_BYTES).expand(len(prompts), -1)
        return {"keys": keys_of(prompts), "label": names.clone(), **found}

    def _fit(self, labels: np.ndarray) -> Fit:
        return Fit(int(labels.max()) + 1, self.l2, self.scaling == "z-score")

    def _streams(
        self, model: Model, batches: Sequence[TokenBatch], *, with_right: bool = False
    ) -> tuple[Float[Tensor, "tap prompt d_model"], np.ndarray]:
        """Return the clean stream at the position, in fp32; and whether first guesses are right."""
        streams, right = [], []
        for batch in batches:
            recording = model.record(batch)
            position = require_subject(batch) if self.position == "subject" else batch.last
            taps = []
            for tap in range(recording.n_layers + 1):
                resid = recording.resid(tap)
                rows = torch.arange(len(resid), device=resid.device)
                taps.append(resid[rows, position.to(resid.device)].float().cpu())
            streams.append(torch.stack(taps))
            if with_right:
                guess = last_logits(recording).argmax(-1).cpu()
                right.append(torch.eq(guess, require_answers(batch)[:, 0].cpu()))
        is_right = torch.cat(right).long().numpy() if right else np.zeros(0, np.int64)
        return torch.cat(streams, dim=1), is_right

    def _probed(
        self, streams: Float[Tensor, "tap prompt d_model"], labels: np.ndarray, groups: np.ndarray
    ) -> Tensors:
        """Return the accuracies of probes, of the controls, and the online code's bits."""
        seed, fit = self.seed, self._fit(labels)
        shuffled = np.random.default_rng(seed).permutation(labels)
        two = torch.from_numpy(np.stack([labels, shuffled]))
        folds = group_folds(groups, labels, seed=seed)
        right, by_chance = held_out(streams, two, folds, fit)
        memory = torch.from_numpy(control_labels(groups, labels, seed=seed))[None]
        (control,) = held_out(streams, memory, prompt_folds(groups, seed=seed), fit)
        orders = [in_order(groups, seed=N_ORDERS * seed + i) for i in range(N_ORDERS)]
        sent = [online_bits(streams, two, *order, fit) for order in orders]
        bits, shuffled_bits = torch.stack(sent).mean(0)
        return {
            "right": right,
            "shuffled": by_chance,
            "control": control,
            "majority": torch.from_numpy(most_frequent(labels, folds)),
            "bits": bits,
            "shuffled_bits": shuffled_bits,
            "n_classes": torch.full((len(labels),), fit.n_classes),
        }

    def _of_twins(
        self,
        model: Model,
        batches: Sequence[TokenBatch],
        labels: np.ndarray,
        groups: np.ndarray,
    ) -> Tensors:
        """Return "untrained" [prompt twin tap]: whether probes of untrained twins name labels."""
        folds = group_folds(groups, labels, seed=self.seed)
        known, right = torch.from_numpy(labels)[None], []
        for twin in twins_of(model, seed=self.seed, n=N_TWINS, first_seed=_FIRST_SEED):
            streams, _ = self._streams(twin, batches)
            right.append(held_out(streams, known, folds, self._fit(labels))[0])
        return {"untrained": torch.stack(right, dim=1)} if right else {}

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return what was prepared of the shard's prompts; nothing is run.

        Whether a probe's first choice is the label, [batch tap]: "right", for "shuffled" labels and
        for the "control" task, and of "untrained" twins [batch twin tap]; whether the "majority"
        is [batch]; the "bits" of a label, and "shuffled_bits", in the online code [batch tap].
        """
        rows = rows_of(prepared["keys"], shard.prompts)
        return {key: tensor[rows] for key, tensor in prepared.items() if key != "keys"}

    def combine(self, parts: Sequence[Tensors]) -> ProbeResult:
        """Return the probes' accuracies and code lengths over all prompts."""
        return ProbeResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """A pass of every untrained twin; the clean pass is the one that the probes read."""
        n, n_taps = len(shard.prompts), model.n_layers + 1
        numbers = n * (n_taps * (5 + N_TWINS) + 2 + _LABEL_BYTES)
        # a prompt's fits take as long as so many tokens' passes (measured at d = 128 and 576)
        values = {value_of(prompt, self.label or FIELDS[0]) for prompt in shard.prompts}
        fits = _FITS * max(2, len(values)) / model.d_model
        weight = 1.0 + fits / (N_TWINS * shard.tokens.shape[1])
        return Cost(float(N_TWINS), numbers, 3 * n * n_taps * model.d_model, weight=weight)
