"""How a checkpoint wants its tokens drawn: its `generation_config.json`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.errors import CheckpointWarning
from penstock.strict_json import Fields, listed

# Keys of generation_config.json that would change the tokens, with the values at which they don't, besides null.
_NEUTRAL: Mapping[str, object] = {
    "bad_words_ids": [],
    "begin_suppress_tokens": [],
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "exponential_decay_length_penalty": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "sequence_bias": [],
    "stop_strings": [],
    "suppress_tokens": [],
    "top_h": None,
    "typical_p": 1,
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """How a checkpoint wants its tokens drawn; None where it does not say. Without do_sample it is greedy."""

    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] = ()


def parse_generation_defaults(
    mapping: Mapping[str, object], source: str, eos_token_ids: tuple[int, ...] = ()
) -> GenerationDefaults:
    """The defaults that `mapping`, the content of a `generation_config.json`, gives; its stop tokens come first,
    `eos_token_ids` where it names none.

    Raises FormatError for values out of range. Warns once (CheckpointWarning) of settings that would change the
    tokens and that Penstock does not have; all other keys are ignored.
    """
    fields = Fields(mapping, source)
    defaults = GenerationDefaults(
        do_sample=fields.get("do_sample") is not None and fields.flag("do_sample", False),
        temperature=fields.optional_number("temperature", lambda t: 0 <= t <= 2, "a number from 0 to 2"),
        top_p=fields.optional_number("top_p", lambda p: 0 < p <= 1, "a number above 0, at most 1"),
        top_k=fields.optional_count("top_k"),
        min_p=fields.optional_number("min_p", lambda p: 0 <= p <= 1, "a number from 0 to 1"),
        repetition_penalty=fields.optional_number("repetition_penalty", lambda r: r > 0, "a positive number"),
        eos_token_ids=fields.token_ids("eos_token_id") or eos_token_ids,
    )
    lost = [key for key, neutral in _NEUTRAL.items() if mapping.get(key) not in (None, neutral)]
    if lost:
        message = f"{source}: passing over settings that Penstock does not have: {listed(lost)}"
        warnings.warn(message, CheckpointWarning, stacklevel=3)
    return defaults
