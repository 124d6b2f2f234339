"""Random circuits that could have won: connected paths, made like the circuit they stand beside.

A control has as many edges as its circuit, of the same kinds (such as head → query), as many from
each layer's heads and MLP, and as many into them; every edge lies on a path from the embedding to
the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp.analyses.circuit_discovery.areas import chosen_by_halves
from interp.analyses.circuit_discovery.circuits import Circuit
from interp.shapes import Tensors
from interp.sweeps.wiring import Wiring

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
_ROUNDS = 80  # of a random eighth of the edges: each edge is moved about ten times
_PART = 8


def random_circuits(circuit: Circuit, n: int, *, seed: int) -> Bools:
    """Return the kept edges [draw receiver sender] of `n` random circuits made like a circuit.

    Each draw gives the heads of every layer other places, then moves edges many times, singly to
    other heads of the same layers, and in pairs that exchange their senders' layers.
    """
    rng, ends = np.random.default_rng(seed), _Ends.of(circuit.wiring)
    drawn = np.empty((n, *circuit.kept.shape), bool)
    for i in range(n):
        drawn[i] = _relabelled(circuit, rng)
        for _ in range(_ROUNDS):
            drawn[i] = _moved(drawn[i], ends, rng)
    return drawn


def controls_for_halves(
    tried: Sequence[Circuit],
    whole: Circuit,
    values: Tensor,
    groups: Tensor,
    *,
    n: int,
    seed: int,
) -> Tensors:
    """Return the "half" of prompts, the fraction "chosen" by each, and "random" circuits for them.

    `values` [prompt fraction+2] are those of circuits, of all edges and of none. "random" are edges
    [choice draw receiver sender], and "shared" the share of them that the circuit has too [choice].
    """
    sizes = [circuit.n_edges for circuit in [*tried, whole]]
    half, chosen = chosen_by_halves(
        values.double().numpy(), sizes, groups=groups.numpy(), seed=seed
    )
    drawn = {at: random_circuits(tried[at], n, seed=seed) for at in {*chosen}}
    shared = [(drawn[at] & tried[at].kept).sum() / (n * max(1, sizes[at])) for at in chosen]
    return {
        "half": torch.from_numpy(half),
        "chosen": torch.tensor(chosen),
        "random": torch.from_numpy(np.stack([drawn[at] for at in chosen])),
        "shared": torch.tensor(shared, dtype=torch.float32),
    }


def _relabelled(circuit: Circuit, rng: np.random.Generator) -> Bools:
    """Return the edges after a random exchange of heads within each layer."""
    wiring = circuit.wiring
    n_heads, n_groups = wiring.n_heads, wiring.n_kv_heads
    senders, receivers = (np.arange(n) for n in circuit.kept.shape[::-1])
    per_layer = n_heads + 2 * n_groups + 1
    for layer in range(wiring.n_layers):
        groups = rng.permutation(n_groups)
        members = np.arange(n_heads).reshape(n_groups, -1)[groups]
        heads = rng.permuted(members, axis=1).ravel()
        first = 1 + layer * (n_heads + 1)
        senders[first : first + n_heads] = first + heads
        first = layer * per_layer
        own = np.concatenate([heads, n_heads + groups, n_heads + n_groups + groups])
        receivers[first : first + len(own)] = first + own
    return circuit.kept[np.ix_(receivers, senders)]


@dataclass(frozen=True)
class _Ends:
    """What edges start from and end in: kinds, and classes of one kind and layer."""

    is_edge: Bools
    feeds: Bools  # [receiver sender]: whether the sender's node reads by that receiver
    kinds: tuple[Ints, Ints]  # of receivers and of senders
    first: tuple[Ints, Ints]  # the first receiver, or sender, of the class that each is in
    size: tuple[Ints, Ints]  # of that class

    @classmethod
    def of(cls, wiring: Wiring) -> "_Ends":
        """Return the ends of all edges; a class's members stand side by side."""
        senders, receivers = wiring.senders, wiring.receivers
        number = {name: i for i, name in enumerate(senders)}
        feeds = np.zeros(wiring.is_edge.shape, bool)
        for i, receiver in enumerate(receivers[:-1]):
            feeds[i, [number[node] for node in wiring.node_of(receiver)]] = True
        kinds, first, size = [], [], []
        for names in (receivers, senders):
            classes = [name.split(".")[0] for name in names]
            _, begin, which, n = np.unique(
                classes, return_index=True, return_inverse=True, return_counts=True
            )
            kinds.append(np.unique([name[0] for name in names], return_inverse=True)[1])
            first.append(begin[which])
            size.append(n[which])
        pairs = [(each[0], each[1]) for each in (kinds, first, size)]
        return cls(wiring.is_edge, feeds, *pairs)

    def drawn(self, side: int, like: Ints, rng: np.random.Generator) -> Ints:
        """Return random ends of the same kinds and layers."""
        return self.first[side][like] + rng.integers(self.size[side][like])

    def cut_off(self, kept: Bools) -> tuple[Bools, Bools]:
        """Return the receivers and senders on no path, and their neighbours; none if all are.

        Edges go forward only, so all lie on a path once every node that sends also reads, and
        every receiver's node sends; the embedding need not read, nor the logits send.
        """
        reads, sends = np.any(kept, axis=1), np.any(kept, axis=0)
        hears = np.any(self.feeds & reads[:, None], axis=0)
        speaks = np.any(self.feeds & sends, axis=1)
        hears[0] = speaks[-1] = True
        deaf, mute = sends & ~hears, reads & ~speaks
        mute_too = np.any(self.feeds & deaf, axis=1)
        deaf_too = np.any(self.feeds & mute[:, None], axis=0)
        return mute | mute_too, deaf | deaf_too


def _moved(kept: Bools, ends: _Ends, rng: np.random.Generator) -> Bools:
    """Return the edges after moving some pairs of them, but for moves that cut a path."""
    reading, sending = kept.nonzero()
    n_pairs = max(1, len(reading) // (2 * _PART))
    if len(reading) < 2:
        return kept
    pairs = rng.permutation(len(reading))[: 2 * n_pairs].reshape(2, n_pairs)
    old = (reading[pairs], sending[pairs])
    alike = [ends.kinds[side][end[0]] == ends.kinds[side][end[1]] for side, end in enumerate(old)]
    crossed = (alike[0] | alike[1]) & rng.integers(2, size=n_pairs).astype(bool)
    new = (
        ends.drawn(0, old[0], rng),
        ends.drawn(1, np.where(crossed, old[1][::-1], old[1]), rng),
    )
    is_first = np.zeros(new[0].size, bool)
    is_first[np.unique(np.ravel_multi_index(new, kept.shape), return_index=True)[1]] = True
    fine = (ends.is_edge[new] & ~kept[new] & is_first.reshape(new[0].shape)).all(0)
    while True:
        after = kept.copy()
        after[old[0][:, fine], old[1][:, fine]] = False
        after[new[0][:, fine], new[1][:, fine]] = True
        receivers, senders = ends.cut_off(after)
        if not (receivers.any() or senders.any()):
            return after
        near = [(receivers[r] | senders[s]).any(0) for r, s in (old, new)]
        fine &= ~(near[0] | near[1])
