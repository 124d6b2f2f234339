"""Which of transformers' classes makes a model of a configuration."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText


def class_of(config: Any) -> Any:
    """Return the class that makes a model of a configuration: of texts with images if it says so.

    Its language model is what is run, on texts alone. None, for one that cannot be read, is of
    texts.
    """
    of_both = type(config) in AutoModelForImageTextToText._model_mapping
    of_texts = type(config) in AutoModelForCausalLM._model_mapping
    if not of_both or not of_texts:
        return AutoModelForImageTextToText if of_both else AutoModelForCausalLM
    named = AutoModelForImageTextToText._model_mapping[type(config)].__name__
    is_named = named in (config.architectures or ())
    return AutoModelForImageTextToText if is_named else AutoModelForCausalLM
