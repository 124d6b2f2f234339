"""A causal language model: its modules, its tokenizer, its passes and its recordings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.activations import ForwardPass
from interp.backward import Rules
from interp.errors import ModelError
from interp.interventions import NO_INTERVENTION, Plan
from interp.models import passes
from interp.models.batch_store import context_of
from interp.models.bridge.forked import refuse_fork
from interp.models.bridge.proving import proven_bridge, refuse_bridge, refuse_other_logits
from interp.models.bridge.rules import rule_hooks
from interp.models.decoding import Chooser, padding_token, refuse_decoding
from interp.models.generate import Generation, Phase
from interp.models.head_maps import HeadMaps
from interp.models.modules import Modules, n_kv_heads, prove
from interp.models.reader import PromptReader, limits_of
from interp.models.runner import ModelRunner
from interp.models.running import Running, replaced_forwards
from interp.models.streaming import stream_of
from interp.models.weights import Weights
from interp.replay import Block, Recording, Work
from interp.replay.rows import tokens_at_once
from interp.sites import Asked, Site
from interp.store import ActivationStore, prompt_key
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch
from interp.tasks.fitting import Fitted

P = ParamSpec("P")
R = TypeVar("R")
_NOT_TAKEN_APART = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _runs(method: Callable[Concatenate["Model", P], R]) -> Callable[Concatenate["Model", P], R]:
    """Wrap a method that runs its model: see `Running`."""

    @wraps(method)
    def run(model: "Model", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with model.running:
            return method(model, *args, **kwargs)

    return run


@dataclass(eq=False, repr=False)
class Model(HeadMaps):
    """A Hugging Face causal LM, unchanged, with TransformerLens's names for its sites.

    During a call (see `running`) the module is in eval mode and uncompiled, and its weights need no
    gradient; afterwards it is as before. If its weights change between calls, earlier recordings
    are refused and stored activations are not read. `store_folder` may be a URL as a string;
    `load_another` loads models by name, as this one was loaded; `checkpoint` is the type of its
    stored weights ("float16", "Q4_1"), "" if unknown.
    """

    name: str
    module: PreTrainedModel
    tokenizer: Any = None
    store_folder: Path | str | None = None
    load_another: "Callable[[str], Model] | None" = None
    checkpoint: str = ""

    def __post_init__(self) -> None:
        self.work = Work()
        self.weights, self.stream = Weights(self.module), stream_of(self.module)
        self._store: ActivationStore | None = None
        self._bridge: tuple[str, Any] | None = None  # with the weights that it was built over
        self.running = Running(self.module)
        with self.running:
            try:
                self.modules = Modules(self.module)
                two = Recording(ModelRunner(self), self.modules.two_tokens(), is_stored=False)
                prove(self.modules, two)
                self.n_kv_heads = n_kv_heads(two)
            except _NOT_TAKEN_APART as error:
                family, why = type(self.module).__name__, f"{type(error).__name__}: {error}"
                raise ModelError(
                    f"{family} cannot be taken apart into blocks of attention and MLP ({why})"
                ) from error
        limits = limits_of(self.module, d_vocab=self.d_vocab)
        self._reader = PromptReader(self.name, self.tokenizer, limits)

    def __repr__(self) -> str:
        made = getattr(self.module.config, "made_from", None)
        sizes = f"n_layers={self.n_layers}, d_model={self.d_model}"
        about = [repr(self.name), type(self.module).__name__, sizes, str(self.dtype)[6:]]
        return f"Model({', '.join([*about, made] if made else about)})"

    # What it is

    @property
    def n_layers(self) -> int:
        """Return the number of decoder blocks."""
        return len(self.blocks)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the modules of every decoder block."""
        return self.modules.blocks

    @property
    def n_heads(self) -> int:
        """Return the number of query heads."""
        return self.blocks[0].n_heads

    @property
    def mixers(self) -> tuple[str, ...]:
        """Return what mixes the positions of each layer: "attention", "recurrent", …"""
        return tuple(block.mixer for block in self.blocks)

    @property
    def d_model(self) -> int:
        """Return the width of the residual stream."""
        return int(self.module.config.get_text_config().hidden_size)

    @property
    def is_parallel(self) -> bool:
        """Tell whether attention and MLP of a block read the same residual."""
        return self.blocks[0].is_parallel

    @property
    def d_vocab(self) -> int:
        """Return the number of logits per position."""
        return self.modules.d_vocab

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return torch.device(self.module.device)

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the weights."""
        dtype: torch.dtype = self.module.dtype
        return dtype

    @property
    def fingerprint(self) -> str:
        """Return a hash of the current configuration and weights."""
        if self.running.is_outermost:
            return self.weights.fingerprint()
        if "fingerprint" not in self.running.memo:
            self.running.memo["fingerprint"] = self.weights.fingerprint()
        return str(self.running.memo["fingerprint"])

    @property
    def store(self) -> ActivationStore | None:
        """Return the store of clean activations for the current weights, or None."""
        if self.store_folder is None:
            return None
        if self._store is None or self._store.model != self.fingerprint:
            self._store = ActivationStore(self.store_folder, model=self.fingerprint, name=self.name)
        return self._store

    @property
    def not_stored(self) -> str:
        """Return why results of this model cannot be stored; "" if they can."""
        if self.weights.edition is not None:
            return "its weights are temporary"
        replaced = replaced_forwards([*self.module.modules()])
        return f"forward of {', '.join(dict.fromkeys(replaced))} was replaced" if replaced else ""

    @_runs
    def another(self, name: str) -> "Model":
        """Return another model, loaded as this one was.

        It is loaded anew unless something runs that has loaded it.
        """
        if self.load_another is None:
            raise ModelError(
                f"{self.name!r} was not loaded by load_model, so it cannot load {name!r}"
            )
        key = f"model {name}"
        if key not in self.running.memo:
            self.running.memo[key] = self.load_another(name)
        return cast(Model, self.running.memo[key])

    def keys(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the store's keys of prompts with these token ids."""
        context = context_of(self)
        return [prompt_key(context, row) for row in rows]

    @property
    def bridge(self) -> Any:
        """Return TransformerLens's TransformerBridge over the same weights, built on first use."""
        with self.running:
            weights = self.fingerprint
            if self._bridge is None or self._bridge[0] != weights:
                refuse_bridge(self.module, self.modules.why_own)
                tokens = self.modules.two_tokens()
                self.refuse_hooks(tokens)  # an error of theirs is not the family's
                bridge = proven_bridge(self.module, tokenizer=self.tokenizer, depth=self.n_layers)
                self._bridge = weights, bridge
        return self._bridge[1]

    def seen_through(self, bridge: Any) -> "Model":
        """Use a given TransformerBridge of the same weights as this model's bridge.

        Raises ModelError if its logits differ.
        """
        for part in (bridge, bridge.original_model):
            self.running.watch(part)
        with self.running:
            refuse_other_logits(bridge, self.module, depth=self.n_layers)
            self._bridge = self.fingerprint, bridge
        return self

    # Prompts

    def tokenize(
        self, prompts: Any, *, answers: bool = False, corrupted: bool = False
    ) -> TokenBatch:
        """Return token ids of a string, strings or prompts, padded on the right where needed.

        With `answers`, each answer follows its prompt; with `corrupted`, the corrupted twins are
        tokenized. The tokenizer's special tokens (BOS) come before a text, none after it. Token ids
        (a list or a tensor of one or several rows, or prompts made of ids) are used unchanged and
        need no tokenizer. Raises TaskError, naming the prompts that cannot be used.
        """
        return self._reader.tokenize(
            prompts, answers=answers, corrupted=corrupted, device=self.device
        )

    def fit(self, task: Task) -> Fitted:
        """Return the prompts of a task that this model can process.

        Raises TaskError, with the reasons, if there are none.
        """
        return self._reader.fit(task)

    def shards(self, task: Task) -> list[tuple[Prompt, ...]]:
        """Return a task's shards: up to 32 prompts of equal length, which can be asked the same."""
        return self._reader.shards(task)

    def options(self, prompt: Prompt, options: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of options that follow a prompt.

        Raises TaskError, naming the prompt, for an option that cannot follow.
        """
        return self._reader.options(prompt, options)

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """Return tokens as the tokenizer writes them, spaces as ␣ and new lines as ↵.

        Without a tokenizer they are numbers.
        """
        return self._reader.names(ids)

    def refuse_texts(self, prompts: Sequence[Prompt]) -> None:
        """Raise if generated texts cannot be compared with the prompts' answers."""
        self._reader.refuse_texts(prompts)

    # What it computes

    @_runs
    def forward(
        self,
        batch: Any,
        *,
        capture: Asked = (),
        plan: Plan = NO_INTERVENTION,
        backward: Rules | None = None,
        positions: slice | None = None,
    ) -> ForwardPass:
        """Return logits and captured activations of a pass with the edits of `plan`.

        `batch` is a TokenBatch, or anything that `tokenize` accepts: a text, texts, prompts, token
        ids. `capture` lists sites; a kind ("pattern") means every layer, and TransformerLens's
        names ("blocks.3.attn.hook_pattern") work too. Block sites are read and written on the stock
        modules with the checkpoint's own attention kernel; with an inner site or a backward rule,
        the whole pass runs through the bridge (eager attention). No graph is kept without
        `backward`. `positions` are those of the logits, by default all; with a large vocabulary,
        fewer save much of the work. Raises SiteError for sites that do not exist or cannot be read
        or written, and for rules that do not apply to this model.
        """
        batch = batch if isinstance(batch, TokenBatch) else self.tokenize(batch)
        return passes.forward(
            self, batch, capture=capture, plan=plan, backward=backward, positions=positions
        )

    @_runs
    def refuse(self, site: Site, *, is_edited: bool = False) -> None:
        """Raise SiteError, saying why, for a place that does not exist or cannot be read.

        With `is_edited`, also for one that cannot be written.
        """
        passes.refuse_site(self, site, is_edited=is_edited)

    @_runs
    def refuse_rules(self, rules: Rules) -> None:
        """Raise SiteError, naming the module, for backward rules that do not apply here."""
        rule_hooks(self.bridge, rules)

    @_runs
    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        """Return fp32 logits [batch pos d_vocab] of the stock model."""
        mask = batch.mask if batch.is_padded else None
        logits: Tensor = self.module(
            input_ids=batch.tokens, attention_mask=mask, use_cache=False
        ).logits
        return logits.float()

    @_runs
    @torch.no_grad()
    def refuse_hooks(
        self, tokens: Tensor, mask: Tensor | None = None, *, of_blocks: bool = False
    ) -> None:
        """Raise ModelError where the owner's hooks change a pass over tokens [batch pos].

        A store, and the bridge (a copy without the hooks), would not see such changes. With
        `of_blocks`, a hook on the whole module's output may change it. Without hooks, nothing runs.
        """
        passes.refuse_hooks(self.module, tokens, mask, of_blocks=of_blocks)

    @_runs
    @torch.no_grad()
    def generate(
        self,
        batch: TokenBatch,
        *,
        max_new_tokens: int,
        capture: Asked = (),
        plan: Plan = NO_INTERVENTION,
        phase: Phase = "both",
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> Generation:
        """Return continuations, greedy, or sampled at a temperature above 0.

        Greedy text without a plan equals `generate(do_sample=False)` of each prompt. What the
        checkpoint's `generation_config` sets (penalties, suppressed tokens, several EOS, …) is
        applied, or refused by name. A prompt's samples depend only on its tokens and its seed (one
        for all, or one for each). A plan applies while prompts are read ("prefill"), while tokens
        are added ("decode"), or in both; its positions are those of the prompt. Captures cover
        prompts and responses.

        Raises TaskError for fewer than 1 new token and for texts longer than the model's context,
        ModelError for unsupported decoding, SiteError for positions in the padding and for sites
        that cannot be read or written.
        """
        planned, wanted = passes.asked_of(self, plan, capture)
        self.refuse_responses(batch, max_new_tokens)
        choose = self.chooser(
            batch, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        generator = passes.generator(self, batch, planned, wanted, phase)
        pad = padding_token(self.module, self.tokenizer)
        generation = generator.run(max_new_tokens=max_new_tokens, choose=choose, pad=pad)
        return self._reader.with_texts(generation)

    def chooser(
        self,
        batch: TokenBatch,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> Chooser:
        """Return the chooser of next tokens; raise ModelError for unsupported decoding."""
        rows = [row[own].tolist() for row, own in zip(batch.tokens, batch.mask, strict=True)]
        return Chooser(
            self.module, rows, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )

    def refuse_responses(self, batch: TokenBatch, max_new_tokens: int) -> None:
        """Raise TaskError for no new token or texts too long, ModelError as `chooser` does."""
        refuse_decoding(self.module)
        self._reader.refuse_responses(batch, max_new_tokens)

    @_runs
    def unembed(self, resid: Tensor) -> Tensor:
        """Return logits [... d_vocab] of residuals: final norm, W_U, scale and soft-cap."""
        return self.modules.unembed(resid)

    def tokens_at_once(self, device: torch.device | None = None) -> int:
        """Return how many tokens a block runs at once on its device, for all analyses."""
        return tokens_at_once(device or self.device, d_model=self.d_model, dtype=self.dtype)

    def record(self, batch: TokenBatch, *, work: Work | None = None) -> Recording:
        """Return a recording of a batch's clean pass, counted in `work` if given; runs no block."""
        mask, total = batch.mask if batch.is_padded else None, self.work if work is None else work
        return Recording(ModelRunner(self), batch.tokens, mask, work=Work(total=total))

    @_runs
    def refuse_edges(self) -> None:
        """Raise SiteError if the inputs of single heads and MLPs cannot be separated."""
        refuse_fork(self.bridge)
