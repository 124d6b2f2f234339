"""One word, one token: the tokenizer of all shipped models."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from interp.zoo.world import BOS, ENTITIES, PAD, RELATIONS, STOP, UNKNOWN


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a fast word-level tokenizer that puts `<bos>` in front."""
    words = [PAD, BOS, UNKNOWN, STOP, *RELATIONS, *ENTITIES]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, pad_token=PAD, unk_token=UNKNOWN, padding_side="right"
    )
