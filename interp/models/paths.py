"""Where the modules of a family are, as dotted paths."""

from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass(frozen=True)
class BlockPaths:
    """Dotted paths of modules in a block; `post` is a norm on what a sublayer writes.

    `attn` is None where no layer of the family has attention of that name. `z_reader` and
    `mlp_post_reader` are the last matrices of attention and MLP, which read heads and neurons.
    Families whose blocks hold the matrices of their MLP themselves have no `mlp`, nor have those
    whose MLP is not one module (`has_mlp` is False). `others` are further parts of blocks, but
    norms: mixers of positions other than attention, several MLPs, gates.
    """

    attn: str | None
    attn_post: str | None
    mlp: str | None
    mlp_post: str | None
    z_reader: str | None
    mlp_post_reader: str | None
    is_parallel: bool
    has_mlp: bool
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModulePaths:
    """Dotted paths of a family's modules, `of_block` those in its blocks.

    `why_own` says why TransformerLens did not name them, but a pass over two tokens; it is "" where
    it did.
    """

    blocks: str
    ln_final: str
    unembed: str
    of_block: BlockPaths
    why_own: str = ""


def architecture(model: PreTrainedModel) -> str:
    """Return the name of a model's family, under which TransformerLens may know it."""
    named = model.config.architectures
    return str(named[0]) if named else type(model).__name__
