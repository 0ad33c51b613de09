"""The families that Penstock runs, and which of them a config.json is of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from penstock.architectures.config import ModelConfig
from penstock.architectures.exaone4 import EXAONE4
from penstock.architectures.family import Family
from penstock.architectures.gemma import GEMMA2, GEMMA3
from penstock.architectures.glm import GLM4_MOE
from penstock.architectures.granite import GRANITE, GRANITE4
from penstock.architectures.llama import LLAMA
from penstock.architectures.mistral import MISTRAL
from penstock.architectures.mixtral import MIXTRAL
from penstock.architectures.olmo import OLMO2, OLMO3, OLMOE
from penstock.architectures.phi3 import PHI3
from penstock.architectures.qwen import QWEN2, QWEN3
from penstock.architectures.qwen_moe import QWEN2_MOE, QWEN3_MOE
from penstock.architectures.smollm3 import SMOLLM3
from penstock.architectures.unsupported import why_not
from penstock.errors import CheckpointWarning, UnsupportedError
from penstock.strict_json import Fields, listed, shown

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    QWEN2,
    QWEN3,
    MISTRAL,
    GEMMA2,
    GEMMA3,
    PHI3,
    OLMO2,
    OLMO3,
    SMOLLM3,
    GRANITE,
    GRANITE4,
    EXAONE4,
    QWEN3_MOE,
    OLMOE,
    MIXTRAL,
    QWEN2_MOE,
    GLM4_MOE,
)

WITH_TEXT_SIDE: Mapping[str, str] = {
    "Gemma3ForConditionalGeneration": "gemma3",
    "Mistral3ForConditionalGeneration": "mistral3",
}
"""Models that see pictures, too, by architecture, and their types. Their `text_config` is a model of a family."""

_OF_THE_WHOLE = ("bos_token_id", "eos_token_id", "tie_word_embeddings")
"""Keys that count for the text side, if it has none of its own."""


def parse_config(mapping: Mapping[str, object], source: str) -> ModelConfig:
    """The model that `mapping`, the content of a `config.json`, describes; `source` opens all messages.

    Raises UnsupportedError for anything but a full-precision model of a known family and FormatError for values that
    cannot be. Warns once (CheckpointWarning) of all keys that it does not know.
    """
    fields = _text_side(Fields(mapping, source))
    family = _family_of(fields)
    _check_full_precision(fields)
    config = family.read(fields)
    if unknown := family.unknown_keys(fields):
        warnings.warn(f"{source}: passing over unknown keys: {listed(unknown)}", CheckpointWarning, stacklevel=3)
    return config


def family_name(mapping: Mapping[str, object], source: str) -> str:
    """What the family of such a model calls itself: "llama". Raises as parse_config does."""
    return _family_of(_text_side(Fields(mapping, source))).model_type


def _text_side(fields: Fields) -> Fields:
    """The fields of the decoder: all, or those of a part."""
    architectures, model_type = fields.get("architectures"), fields.get("model_type")
    if architectures is not None and not isinstance(architectures, list):
        fields.fail("architectures", "a list of names")
    whole = {name: kind for name, kind in WITH_TEXT_SIDE.items() if architectures in ([name], [], None)}
    if model_type not in whole.values() and not (model_type is None and architectures and whole):
        return fields
    _check_full_precision(fields)
    text = fields.part("text_config").mapping
    if not text:
        fields.fail("text_config", "the settings of its text side")
    above = {key: fields.mapping[key] for key in _OF_THE_WHOLE if key in fields.mapping}
    return Fields({**above, **text}, fields.source, "text_config.")


def _family_of(fields: Fields) -> Family:
    """By its architecture; or, where none is named, by the type of the model."""
    architectures, model_type = fields.get("architectures"), fields.get("model_type")
    if architectures is not None and not isinstance(architectures, list):
        fields.fail("architectures", "a list of names")
    if not architectures and model_type is None:
        problem = f"{fields.source} names neither architectures nor a model_type"
        raise UnsupportedError(problem, why_not(None, FAMILIES))
    for family in FAMILIES:
        if architectures in ([family.architecture], [], None) and model_type in (family.model_type, None):
            return family
    known = architectures in [[family.architecture] for family in FAMILIES]
    remedy = why_not(model_type if isinstance(model_type, str) else None, FAMILIES)
    if architectures and not known:
        raise UnsupportedError(f"{fields.source}: the architecture is {shown(architectures)}", remedy)
    raise UnsupportedError(f"{fields.source}: the model_type is {shown(model_type)}", remedy)


def _check_full_precision(fields: Fields) -> None:
    for key in ("quantization_config", "compression_config"):
        if fields.get(key) is not None:
            problem = f"{fields.source}: {key} is set, so these are not the full-precision weights"
            raise UnsupportedError(problem, "Use the original BF16, F16 or F32 checkpoint that was quantized.")
