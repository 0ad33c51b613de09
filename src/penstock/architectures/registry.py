"""The families that Penstock runs, and which of them a config.json is of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from penstock.architectures.config import ModelConfig
from penstock.architectures.family import Family
from penstock.architectures.llama import LLAMA
from penstock.architectures.qwen2 import QWEN2
from penstock.errors import CheckpointWarning, UnsupportedError
from penstock.strict_json import Fields, listed, shown

FAMILIES: tuple[Family, ...] = (LLAMA, QWEN2)


def parse_config(mapping: Mapping[str, object], source: str) -> ModelConfig:
    """The model that `mapping`, the content of a `config.json`, describes; `source` opens all messages.

    Raises UnsupportedError for anything but a full-precision model of a known family and FormatError for values that
    cannot be. Warns once (CheckpointWarning) of all keys that it does not know.
    """
    fields = Fields(mapping, source)
    family = _family_of(fields)
    _check_full_precision(fields)
    config = family.read(fields)
    if unknown := family.unknown_keys(fields):
        warnings.warn(f"{source}: passing over unknown keys: {listed(unknown)}", CheckpointWarning, stacklevel=3)
    return config


def _family_of(fields: Fields) -> Family:
    """By its architecture; or, where none is named, by the type of the model."""
    architectures, model_type = fields.get("architectures"), fields.get("model_type")
    if architectures is not None and not isinstance(architectures, list):
        fields.fail("architectures", "a list of names")
    if not architectures and model_type is None:
        raise UnsupportedError(f"{fields.source} names neither architectures nor a model_type", _supported())
    for family in FAMILIES:
        if architectures in ([family.architecture], [], None) and model_type in (family.model_type, None):
            return family
    if architectures and architectures not in [[family.architecture] for family in FAMILIES]:
        raise UnsupportedError(f"{fields.source}: the architecture is {shown(architectures)}", _supported())
    raise UnsupportedError(f"{fields.source}: the model_type is {shown(model_type)}", _supported())


def _supported() -> str:
    return f"Penstock runs {'; '.join(f'{f.architecture} ({f.known_as})' for f in FAMILIES)}."


def _check_full_precision(fields: Fields) -> None:
    for key in ("quantization_config", "compression_config"):
        if fields.get(key) is not None:
            problem = f"{fields.source}: {key} is set, so these are not the full-precision weights"
            raise UnsupportedError(problem, "Use the original BF16, F16 or F32 checkpoint that was quantized.")
