"""A causal language model with its stock modules: what it is, what it computes, how it is recorded."""

import inspect
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from interp.activations import Activations, ForwardPass
from interp.backward import Rules
from interp.errors import ModelError, SiteError, TaskError
from interp.interventions import NO_INTERVENTION, Plan, among, at_layer
from interp.models.bridge.building import ModulePaths, build_bridge, eager_twin, module_paths
from interp.models.bridge.forked import Forked, refuse_fork
from interp.models.bridge.inner import few_tokens, unreadable, unwritable
from interp.models.bridge.routing import find_experts
from interp.models.bridge.rules import rule_hooks
from interp.models.decoding import Chooser, padding_token, refuse_decoding
from interp.models.edits import Edits, Leaf
from interp.models.forward import NO_RULES, bridge_forward, is_inner, stock_hooks
from interp.models.generate import Generation, Generator, Phase
from interp.models.gradients import graph, ordinary
from interp.models.rounding import is_near, is_sum
from interp.models.running import Running, has_forward_hooks, replaced_forwards
from interp.models.shelf import Shelf
from interp.models.weights import Weights
from interp.replay import Arguments, Block, Read, Recording, Work, Wrote, dry_pass
from interp.replay.rows import tokens_at_once
from interp.sites import Site
from interp.store import ActivationStore, prompt_key
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch, as_prompts, tokenize
from interp.tasks.encoding import Encoder, Limits
from interp.tasks.fitting import Fitted, fit

_log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
_NOT_TAKEN_APART = (
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _runs(method: Callable[Concatenate["Model", P], R]) -> Callable[Concatenate["Model", P], R]:
    """Let a method run its model: see `Running`."""

    @wraps(method)
    def run(model: "Model", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with model.running:
            return method(model, *args, **kwargs)

    return run


@dataclass(frozen=True, eq=False)
class Model:
    """A Hugging Face causal LM, unchanged, and TransformerLens's names for its places.

    While something runs (see `running`) the module is in eval mode, uncompiled, and its weights
    want no gradient; then it is as it was. Its weights may change between calls: what was recorded
    before is then refused, what is stored is not read.
    """

    name: str
    module: PreTrainedModel
    tokenizer: Any = None
    store_folder: Path | str | None = None  # a string where it is a URL
    load_another: Callable[[str], "Model"] | None = (
        None  # how models are loaded that this one is compared with
    )
    work: Work = field(default_factory=Work, init=False, repr=False)
    _paths: ModulePaths = field(init=False, repr=False)
    _blocks: tuple[Block, ...] = field(init=False, repr=False)
    _n_kv_heads: int = field(init=False, repr=False)
    running: Running = field(init=False, repr=False)
    _weights: Weights = field(init=False, repr=False)
    _seen: dict[str, Any] = field(
        init=False, repr=False
    )  # what holds while something runs, and is then forgotten

    def __post_init__(self) -> None:
        object.__setattr__(self, "_weights", Weights(self.module))
        object.__setattr__(self, "_seen", {})
        object.__setattr__(self, "running", Running(self.module, between=self._seen.clear))
        with self.running:
            try:
                object.__setattr__(self, "_paths", module_paths(self.module))
                object.__setattr__(self, "_blocks", self._find_blocks())
                self._prove()
            except _NOT_TAKEN_APART as error:
                family, why = type(self.module).__name__, f"{type(error).__name__}: {error}"
                raise ModelError(
                    f"{family} cannot be taken apart into blocks of attention and MLP ({why})"
                ) from error

    # What it is

    @property
    def n_layers(self) -> int:
        """Return the number of decoder blocks."""
        return len(self._blocks)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the modules of every decoder block."""
        return self._blocks

    @property
    def n_heads(self) -> int:
        """Return the number of query heads."""
        return int(self.module.config.get_text_config().num_attention_heads)

    @property
    def d_model(self) -> int:
        """Return the width of the residual stream."""
        return int(self.module.config.get_text_config().hidden_size)

    @property
    def n_kv_heads(self) -> int:
        """Return the number of heads of keys and values: fewer than `n_heads` under grouped
        queries.
        """
        return self._n_kv_heads

    @property
    def is_parallel(self) -> bool:
        """Tell whether attention and MLP of a block read the same residual."""
        return self._blocks[0].is_parallel

    @property
    def d_vocab(self) -> int:
        """Return the number of logits per position."""
        return int(self._unembed.get_parameter("weight").shape[0])

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
        """Return a hash of configuration and weights as they are now: equal for equal models,
        wherever they came from.
        """
        if self.running.is_outermost:
            return self._weights.fingerprint()
        if "fingerprint" not in self._seen:
            self._seen["fingerprint"] = self._weights.fingerprint()
        fingerprint: str = self._seen["fingerprint"]
        return fingerprint

    @property
    def store(self) -> ActivationStore | None:
        """Return the store of this model's clean activations, if it keeps any: those of its weights
        as they are now.
        """
        if self.store_folder is None:
            return None
        known: ActivationStore | None = vars(self).get("_store")
        if known is None or known.model != self.fingerprint:
            known = vars(self)["_store"] = ActivationStore(
                self.store_folder, model=self.fingerprint, name=self.name
            )
        return known

    @property
    def not_stored(self) -> str:
        """Return why nothing this model computes is kept in a store; empty if it may be."""
        replaced = replaced_forwards([*self.module.modules()])
        return f"forward of {', '.join(dict.fromkeys(replaced))} was replaced" if replaced else ""

    @_runs
    def another(self, name: str) -> "Model":
        """Return another model, loaded as this one was; it is loaded anew unless something runs
        that has loaded it.
        """
        if self.load_another is None:
            raise ModelError(
                f"{self.name!r} was not loaded by load_model, which would load {name!r} beside it"
            )
        key = f"model {name}"
        if key not in self._seen:
            self._seen[key] = self.load_another(name)
        other: Model = self._seen[key]
        return other

    def keys(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the keys in a store of prompts with these token ids."""
        return [prompt_key(self._context, row) for row in rows]

    @property
    def bridge(self) -> Any:
        """Return TransformerLens's TransformerBridge over the same weights; the stock modules stay
        as they are.
        """
        with self.running:
            weights, known = self.fingerprint, vars(self).get("_bridge")
            if known is None or known[0] != weights:
                known = vars(self)["_bridge"] = weights, self._build_bridge()
        return known[1]

    def _build_bridge(self) -> Any:
        family = type(self.module).__name__
        if hasattr(self.module, "hf_device_map") and len({*self.module.hf_device_map.values()}) > 1:
            raise SiteError(
                f"{family} is spread over devices; TransformerLens's view, and inner sites, need it"
                " on one"
            )
        self.refuse_hooks(self._two_tokens(), None)  # an error of theirs is no fault of the family
        try:
            bridge = build_bridge(self.module, tokenizer=self.tokenizer)
            self._prove_bridge(bridge)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise SiteError(f"{family} cannot be seen through TransformerLens: {error}") from None
        return bridge

    def seen_through(self, bridge: Any) -> "Model":
        """Let a TransformerBridge of the same weights be this model's bridge; raise ModelError if
        its logits are others.
        """
        for part in (bridge, bridge.original_model):
            self.running.watch(part)
        return self._prove_given(bridge)

    @_runs
    def _prove_given(self, bridge: Any) -> "Model":
        try:
            self._prove_bridge(bridge)
        except ValueError:
            raise ModelError(
                f"the bridge given computes other logits than the {type(self.module).__name__}"
                " inside it (compatibility mode folds its weights); give one without"
            ) from None
        vars(self)["_bridge"] = self.fingerprint, bridge
        return self

    @torch.no_grad()
    def _prove_bridge(self, bridge: Any) -> None:
        """Compare with the stock model's logits by the same attention kernel: another one rounds
        otherwise.
        """
        tokens = few_tokens(bridge)
        stock = eager_twin(self.module)(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
        )
        if not is_near(bridge(tokens), stock.logits, depth=self.n_layers):
            raise ValueError("its logits differ")

    # Prompts

    def tokenize(
        self, prompts: Any, *, answers: bool = False, corrupted: bool = False
    ) -> TokenBatch:
        """Return token ids of a string, strings or prompts, padded on the right if they differ in
        length.

        With `answers`, each answer follows its prompt; with `corrupted`, the corrupted twins are
        tokenized. The tokenizer puts its own special tokens (BOS) in front, and none stands behind.
        Token ids (a list or a tensor of one row or of several, prompts made of ids) are taken as
        they are, and need no tokenizer. Raises TaskError naming prompts that cannot be used.
        """
        asked = as_prompts(prompts)
        self._require_tokenizer(asked)
        how: dict[str, Any] = {"device": self.device, "limits": self._limits}
        batch = tokenize(self.tokenizer, asked, answers=answers, corrupted=corrupted, **how)
        longest = self._longest
        if longest is not None and batch.tokens.shape[1] > longest:
            raise TaskError(
                f"a prompt of {batch.tokens.shape[1]} tokens; the model reads at most {longest}"
            )
        return batch

    def fit(self, task: Task) -> Fitted:
        """Return the prompts of a task that this model can be fed; raise TaskError, with the
        reasons, if there are none.
        """
        self._require_tokenizer(task.prompts[:1])
        return fit(self.tokenizer, task, limits=self._limits)

    def shards(self, task: Task) -> list[tuple[Prompt, ...]]:
        """Return a task's shards: up to 32 prompts of as many tokens, of which the same can be
        asked.
        """
        self._require_tokenizer(task.prompts[:1])
        encoded = Encoder(self.tokenizer, self._limits).encode(task.prompts)
        facts = {each.prompt.id: each.facts for each in encoded}
        return task.shards(lambda prompt: facts[prompt.id])

    def options(self, prompt: Prompt, options: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of options behind a prompt; raise TaskError, naming it, for one that
        cannot follow.
        """
        self._require_tokenizer([prompt])
        return Encoder(self.tokenizer, self._limits).options(prompt, options)

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """Return tokens as the tokenizer writes them, spaces as ␣ and new lines as ↵; without a
        tokenizer as numbers.
        """
        if self.tokenizer is None:
            return list(map(str, ids))
        names = zip(self.tokenizer.convert_ids_to_tokens(list(ids)), ids, strict=True)
        return [
            str(i if name is None else name).replace("Ġ", "␣").replace("▁", "␣").replace("Ċ", "↵")
            for name, i in names
        ]

    def refuse_texts(self, prompts: Sequence[Prompt]) -> None:
        """Raise where what a model says behind prompts cannot be read as text and compared with
        their answers.
        """
        if self.tokenizer is None:
            raise ModelError(
                f"model {self.name!r} has no tokenizer; generated texts (max_new_tokens) cannot be"
                " read"
            )
        for prompt in prompts:
            ids = prompt.spelling.get(prompt.answer or "", ())
            if (
                ids
                and str(self.tokenizer.decode(list(ids))).strip() != (prompt.answer or "").strip()
            ):
                raise TaskError(
                    f"prompt {prompt.id!r} is token ids; its answer cannot be found in a generated"
                    " text"
                )

    def _require_tokenizer(self, prompts: Sequence[Prompt]) -> None:
        if self.tokenizer is None and any(prompt.tokens is None for prompt in prompts):
            raise ModelError(
                f"model {self.name!r} has no tokenizer; give token ids, or a tokenizer"
            )

    @property
    def _limits(self) -> Limits:
        """Return which ids, and how many of them, the model reads."""
        embedding = self.module.get_input_embeddings()
        n_ids = self.d_vocab if embedding is None else min(self.d_vocab, len(embedding.weight))
        return Limits(n_ids, self._longest)

    # What it computes

    @_runs
    def forward(
        self,
        batch: TokenBatch,
        *,
        capture: Iterable[Site] = (),
        plan: Plan = NO_INTERVENTION,
        backward: Rules | None = None,
    ) -> ForwardPass:
        """Return logits and captured activations of a pass in which `plan` is carried out.

        Block sites are read and written on the stock modules with the checkpoint's own attention
        kernel; if any inner site or backward rule is asked for, the whole pass runs through the
        bridge (eager attention). Without `backward` no graph is kept. Raises SiteError for places
        that do not exist, cannot be read or cannot be written, and for rules that this model cannot
        honour.
        """
        planned, wanted = at_layer(plan, n_layers=self.n_layers), set(capture)
        for site in {*planned, *wanted}:
            self._refuse_site(site, is_edited=site in planned)
        own = batch.mask if batch.is_padded else None
        edits: Edits = {
            site: [among(each, own) for each in interventions]
            for site, interventions in planned.items()
        }
        if backward is not None:
            start = Site("resid_pre", 0)
            edits[start] = [*edits.get(start, []), Leaf()]
        rules = (
            rule_hooks(self.bridge, backward) if backward is not None and backward.rules else None
        )
        captured: dict[Site, Tensor] = {}
        with graph(backward is not None):
            mask = ordinary(batch.mask) if batch.is_padded else None
            if rules is not None or any(map(is_inner, [*edits, *wanted])):
                rules = rules or NO_RULES
                self.refuse_hooks(batch.tokens, mask)
                logits = bridge_forward(
                    self.bridge, batch.tokens, mask, edits, wanted, into=captured, rules=rules
                )
            else:
                with stock_hooks(self._blocks, edits, wanted, into=captured):
                    logits = self.module(
                        input_ids=batch.tokens, attention_mask=mask, use_cache=False
                    ).logits
            return ForwardPass(logits.float(), Activations(captured))

    @_runs
    def refuse(self, site: Site, *, is_edited: bool = False) -> None:
        """Raise SiteError, saying why, for a place that does not exist here or cannot be read
        (`is_edited`: written).
        """
        self._refuse_site(site, is_edited=is_edited)

    @_runs
    def refuse_rules(self, rules: Rules) -> None:
        """Raise SiteError, naming the module, for backward rules that this model cannot honour;
        runs no prompt.
        """
        rule_hooks(self.bridge, rules)

    def _refuse_site(self, site: Site, *, is_edited: bool) -> None:
        """Raise SiteError, saying why, for a place that does not exist here, or cannot be read or
        written.
        """
        if not isinstance(site, Site):
            raise SiteError(f"{site!r} given; a place such as Site('resid_pre', 0) is needed")
        if not 0 <= site.layer < self.n_layers:
            raise SiteError(f"{site} asked for; the model's last layer is {self.n_layers - 1}")
        if site.kind == "resid_mid" and self._blocks[site.layer].is_parallel:
            raise SiteError(
                f"{site} does not exist: attention and MLP of this family read the same residual"
            )
        if site.kind == "router" and self._blocks[site.layer].experts is None:
            raise SiteError(f"{site} does not exist: the MLP of this layer has no experts")
        if not is_inner(site):
            return
        if why := unreadable(self.bridge, site):
            raise SiteError(f"{site} cannot be read: {why}")
        if is_edited and (why := unwritable(self.bridge, site)):
            raise SiteError(f"{site} cannot be written: {why}")

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
        """Raise ModelError where the owner's hooks change a pass over tokens [batch pos]; none is
        run without hooks.

        For what does not run the stock modules: a store, or the bridge, a copy that does not have
        them. `of_blocks`: what a hook on the whole module's output does is no matter.
        """
        modules = [*self.module.modules()]
        inside = has_forward_hooks(modules[1:]) or bool(self.module._forward_pre_hooks)
        if inside if of_blocks else has_forward_hooks(modules):
            self.module(input_ids=tokens, attention_mask=mask, use_cache=False)

    @_runs
    @torch.no_grad()
    def generate(
        self,
        batch: TokenBatch,
        *,
        max_new_tokens: int,
        capture: Iterable[Site] = (),
        plan: Plan = NO_INTERVENTION,
        phase: Phase = "both",
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> Generation:
        """Return continuations of up to `max_new_tokens` tokens, greedy, or sampled at a
        temperature above 0.

        Without a plan and greedily equal to `generate(do_sample=False)` of each prompt: what the
        checkpoint's `generation_config` asks for (penalties, suppressed tokens, several EOS, …) is
        carried out, or refused by name. A prompt's samples depend on its tokens and its seed (one
        for all, or one for each) alone. A plan is carried out while prompts are read ("prefill"),
        while tokens are added ("decode"), or in both; named positions are the prompt's. Captures
        cover prompts and responses.

        Raises TaskError for fewer than 1 new token and for texts longer than the model reads,
        ModelError for decoding that is not known here, SiteError for positions in the padding and
        for places that cannot be read or written.
        """
        planned, wanted = at_layer(plan, n_layers=self.n_layers), set(capture)
        for site in sorted({*planned, *wanted}):
            self._refuse_site(site, is_edited=site in planned)
        self.refuse_responses(batch, max_new_tokens)
        choose = self.chooser(
            batch, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        bridge = self.bridge if any(map(is_inner, [*planned, *wanted])) else None
        module = self.module if bridge is None else bridge.original_model
        generator = Generator(module, self._blocks, bridge, batch, planned, wanted, phase)
        if bridge is not None:
            self.refuse_hooks(batch.tokens, batch.mask)
        pad = padding_token(self.module, self.tokenizer)
        generation = generator.run(max_new_tokens=max_new_tokens, choose=choose, pad=pad)
        return (
            generation
            if self.tokenizer is None
            else replace(generation, texts=self._texts(generation))
        )

    def chooser(
        self,
        batch: TokenBatch,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> Chooser:
        """Return what chooses each next token of these prompts; raise ModelError for decoding that
        is not known here.
        """
        rows = [row[own].tolist() for row, own in zip(batch.tokens, batch.mask, strict=True)]
        return Chooser(
            self.module, rows, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )

    def refuse_responses(self, batch: TokenBatch, max_new_tokens: int) -> None:
        """Raise TaskError for fewer than 1 new token and for texts too long to be read, ModelError
        as `chooser` does.
        """
        refuse_decoding(self.module)
        if max_new_tokens < 1:
            raise TaskError(f"max_new_tokens={max_new_tokens}; at least 1 is needed")
        n_pos, longest = int(batch.mask.sum(1).max()) + max_new_tokens - 1, self._longest
        if longest is not None and n_pos > longest:
            raise TaskError(
                f"{n_pos} tokens with the response (max_new_tokens={max_new_tokens}); the model"
                f" reads {longest}"
            )

    def _texts(self, generation: Generation) -> tuple[str, ...]:
        new, mask = (
            generation.tokens[:, generation.response],
            generation.mask[:, generation.response],
        )
        rows = [row[alive].tolist() for row, alive in zip(new, mask, strict=True)]
        return tuple(self.tokenizer.batch_decode(rows, skip_special_tokens=True))

    @property
    def _longest(self) -> int | None:
        return getattr(self.module.config.get_text_config(), "max_position_embeddings", None)

    @_runs
    def unembed(self, resid: Tensor) -> Tensor:
        """Return logits [... d_vocab] of residuals [... d_model]: final norm, W_U, scale and
        soft-cap.
        """
        config = self.module.config.get_text_config()
        logits: Tensor = self._unembed(self._ln_final(resid))
        logits = (
            logits
            * (getattr(config, "logit_scale", None) or 1.0)
            / getattr(config, "logits_scaling", 1.0)
        )
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def tokens_at_once(self, device: torch.device | None = None) -> int:
        """Return how many tokens a block runs at once on its device: the budget of all analyses."""
        return tokens_at_once(device or self.device, d_model=self.d_model, dtype=self.dtype)

    def record(self, batch: TokenBatch) -> Recording:
        """Return a recording of the clean pass over a batch; runs no block."""
        return self._record(
            batch.tokens, batch.mask if batch.is_padded else None, Work(total=self.work)
        )

    def _record(
        self, tokens: Tensor, mask: Tensor | None, work: Work, *, is_kept: bool = True
    ) -> Recording:
        recording = Recording(
            self._blocks,
            batch_size=tokens.shape[0],
            n_pos=tokens.shape[1],
            dry=lambda start: self._dry(tokens, mask, start=start),
            unembed=self.unembed,
            beside=lambda others: self._record(others, None, work),
            forward=partial(self._counted_forward, work),
            forked=partial(self._forked, work),
            running=partial(self._running_since, self._weights.state()),
            tokens_at_once=self.tokens_at_once,
            work=work,
        )
        if is_kept and mask is None and (store := self._store_to_use()) is not None:
            shelf = Shelf(store, self.keys(tokens.tolist()), tokens, self.dtype)
            recording.read, recording.keep = partial(self._read, shelf), shelf.keep
        return recording

    def _read(self, shelf: Shelf, site: Site) -> Tensor | None:
        known = shelf.read(site)
        if known is not None:
            self.refuse_hooks(shelf.tokens, of_blocks=True)
        return known

    def _store_to_use(self) -> ActivationStore | None:
        if self.store_folder is None:
            return None
        if why := self.not_stored:
            _log.warning(
                "%s: %s; its activations are neither stored nor read from a store", self.name, why
            )
            return None
        return self.store

    @contextmanager
    def _running_since(self, state: Hashable) -> Iterator[None]:
        """Let a recording run blocks; raise ModelError if the weights are not those that it was
        begun with.
        """
        if self.running.is_outermost and self._weights.state() != state:
            raise ModelError(
                f"the weights of {self.name!r} have changed since this recording was begun; record"
                " it again"
            )
        with self.running:
            yield

    def _counted_forward(
        self,
        work: Work,
        tokens: Tensor,
        *,
        capture: Iterable[Site] = (),
        plan: Plan = NO_INTERVENTION,
        backward: Rules | None = None,
    ) -> ForwardPass:
        there_and_back = (
            1.0 if backward is None else 2.0
        )  # the way back costs about what the way there does
        work.add(there_and_back * tokens.numel() * self.n_layers)
        last = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        batch = TokenBatch((), tokens, torch.ones_like(tokens, dtype=torch.bool), last)
        return self.forward(batch, capture=capture, plan=plan, backward=backward)

    @_runs
    def _forked(
        self, work: Work, tokens: Tensor, *, read: Read, wrote: Wrote, backward: Rules | None = None
    ) -> Tensor:
        there_and_back = 1.0 if backward is None else 2.0
        work.add(there_and_back * tokens.numel() * self.n_layers)
        rules = NO_RULES if backward is None else rule_hooks(self.bridge, backward)
        needs_graph = backward is not None
        with graph(needs_graph):
            self.refuse_hooks(tokens, None)
            return Forked(
                self.bridge, read=read, wrote=wrote, rules=rules, needs_graph=needs_graph
            ).run(tokens)

    @_runs
    def refuse_edges(self) -> None:
        """Raise SiteError, saying why, where what single heads and MLPs read cannot be told apart."""
        refuse_fork(self.bridge)

    @property
    def _context(self) -> list[str]:
        """Return all that a prompt's activations depend on beside its tokens, as it is now."""
        minor = [
            ".".join(version.split(".")[:2])
            for version in (torch.__version__, transformers.__version__)
        ]
        kernel = str(getattr(self.module.config, "_attn_implementation", None))
        precision = torch.get_float32_matmul_precision()
        return [self.fingerprint, str(self.dtype), kernel, self.device.type, precision, *minor]

    @_runs
    @torch.no_grad()
    def _dry(
        self, tokens: Tensor, mask: Tensor | None, *, start: int
    ) -> tuple[Tensor, list[Arguments]]:
        cache = None
        if start:
            cache = DynamicCache()
            for layer in range(self.n_layers):
                nothing = torch.zeros(tokens.shape[0], 1, start, 1, device=self.device)
                cache.update(nothing, nothing, layer)
        return dry_pass(
            self._blocks,
            lambda: self.module(
                input_ids=tokens[:, start:],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=cache is not None,
            ),
        )

    # Finding the modules, once

    def _submodule(self, path: str) -> nn.Module:
        found: nn.Module = self.module.get_submodule(path)
        return found

    @property
    def _ln_final(self) -> nn.Module:
        return self._submodule(self._paths.ln_final)

    @property
    def _unembed(self) -> nn.Module:
        return self._submodule(self._paths.unembed)

    @torch.no_grad()
    def _find_blocks(self) -> tuple[Block, ...]:
        """Locate every block's modules and see, on two tokens, what they return and what they call
        the cache.
        """
        paths = self._paths
        modules = list(self._submodule(paths.blocks).children())
        seen: dict[nn.Module, tuple[Any, dict[str, Any]]] = {}

        def see(module: nn.Module, _args: object, kwargs: dict[str, Any], output: Any) -> None:
            seen[module] = (output, kwargs)

        watched = [*modules, *(module.get_submodule(paths.attn) for module in modules)]
        handles = [module.register_forward_hook(see, with_kwargs=True) for module in watched]
        try:
            self._probe()
        finally:
            for handle in handles:
                handle.remove()
        return tuple(self._block(module, seen) for module in modules)

    def _block(self, module: nn.Module, seen: dict[nn.Module, tuple[Any, dict[str, Any]]]) -> Block:
        paths, attn = self._paths, module.get_submodule(self._paths.attn)
        parameters = tuple(inspect.signature(module.forward).parameters)
        cache = next(
            (
                name
                for name in ("past_key_values", "layer_past", "past_key_value")
                if name in parameters
            ),
            None,
        )
        if hasattr(module, "_orig_mod"):
            raise ModelError(
                "blocks compiled by torch.compile(block) given; compile in place (block.compile())"
                " or not at all"
            )
        if cache is None:
            raise ModelError(
                f"{type(module).__name__} has no parameter for a cache: {', '.join(parameters)}"
            )
        output, attn_output = seen[module][0], seen[attn][0]
        return Block(
            module=module,
            attn=attn,
            attn_write=_writer(module, paths.attn, paths.attn_post, paths.z_reader),
            mlp_write=_writer(module, paths.mlp, paths.mlp_post, paths.mlp_post_reader),
            z_reader=None if paths.z_reader is None else module.get_submodule(paths.z_reader),
            mlp_post_reader=(
                None
                if paths.mlp_post_reader is None
                else module.get_submodule(paths.mlp_post_reader)
            ),
            experts=None if paths.mlp is None else find_experts(module.get_submodule(paths.mlp)),
            n_heads=self.n_heads,
            is_parallel=paths.is_parallel,
            returns_tuple=isinstance(output, tuple),
            attn_returns=len(attn_output) if isinstance(attn_output, tuple) else 1,
            parameters=parameters,
            attn_parameters=tuple(inspect.signature(attn.forward).parameters),
            cache_parameter=cache,
            write_scale=float(
                getattr(self.module.config.get_text_config(), "residual_multiplier", None) or 1.0
            ),
        )

    def _two_tokens(self) -> Tensor:
        """Return two tokens [1 2] that are no padding, of which transformers would warn."""
        padding = getattr(self.module.config.get_text_config(), "pad_token_id", None)
        return torch.full((1, 2), int(padding == 0), dtype=torch.long, device=self.device)

    def _probe(self) -> Tensor:
        tokens = self._two_tokens()
        logits: Tensor = self.module(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
        ).logits
        return logits

    @torch.no_grad()
    def _prove(self) -> None:
        """See, on two tokens, that blocks add attention and MLP to the stream, and that logits are
        read as we read them.
        """
        family = type(self.module).__name__
        tokens = self._two_tokens()
        recording = self._record(tokens, None, Work(), is_kept=False)
        for layer in range(self.n_layers):
            writes = [
                recording.clean(Site("attn_out", layer)),
                recording.clean(Site("mlp_out", layer)),
            ]
            if not is_sum(recording.resid(layer + 1), recording.resid(layer), *writes):
                raise ModelError(
                    f"block {layer} of {family} does more to the residual stream than adding"
                    " attention and MLP; it cannot be taken apart"
                )
        object.__setattr__(self, "_n_kv_heads", recording.kv(0)[0].shape[1])
        last: list[Tensor] = []

        def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            last.append(args[0] if args else next(iter(kwargs.values())))

        handle = self._ln_final.register_forward_pre_hook(see, with_kwargs=True)
        try:
            logits = self._probe()
        finally:
            handle.remove()
        ours = recording.resid(self.n_layers)
        if not (last and is_near(ours, last[0].reshape(ours.shape), depth=self.n_layers)):
            raise ModelError(
                f"{family} does more than run its blocks one after the other; it cannot be taken"
                " apart"
            )
        if not is_near(self.unembed(last[0].reshape(ours.shape)), logits):
            raise ModelError(
                f"{family} does something to its logits that this library does not know"
            )


def _writer(
    block: nn.Module, sublayer: str | None, post: str | None, last: str | None
) -> nn.Module:
    """Return the module whose output is added to the stream."""
    if post is not None:
        return block.get_submodule(post)
    if sublayer is not None:
        module = block.get_submodule(sublayer)
        if "residual" not in inspect.signature(module.forward).parameters or last is None:
            return module
    if last is None:
        raise ModelError(f"{type(block).__name__} has no module that returns what its MLP writes")
    return block.get_submodule(last)
