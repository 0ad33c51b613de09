"""adapter_config.json as PEFT writes it: ranks and scales, and what else would change what is computed.

Source: peft 0.21, `LoraConfig`, and `get_pattern_key` for how patterns name modules.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from penstock.errors import CheckpointWarning, FormatError, UnsupportedError
from penstock.strict_json import Fields, listed, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_RANK = DEFAULT_ALPHA = 8
MERGE = "Let PEFT merge it into the model (merge_and_unload), and run the merged checkpoint."

_WITHOUT_EFFECT = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "lora_dropout",
        "layers_to_transform",
        "layers_pattern",
        "megatron_config",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "velora_config",
        "runtime_config",
        "qalora_group_size",
        "ensure_weight_tying",
    }
)
"""Of training, or told by the tensors anyway."""
_ONLY_OFF = (
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "lora_bias",
    "target_parameters",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""What would change the arithmetic, or other tensors of the model."""
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the model's own weights alone; others change them."""

MOST_PATTERNS, MOST_EXPRESSIONS, MOST_PATTERN_LENGTH = 5_000, 64, 300
"""A model has no more modules; expressions take longer than names."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The rank of each module, and what its product is multiplied by."""

    rank: int
    alpha: float
    root: bool
    """Whether alpha is divided by the root of the rank (rsLoRA, arXiv 2312.03732), not by the rank."""
    ranks: Sequence[tuple[re.Pattern[str], int]]
    """Those of modules whose names a pattern matches; the first that does counts."""
    alphas: Sequence[tuple[re.Pattern[str], float]]
    source: str

    def rank_of(self, module: str) -> int:
        """`module`: as the base model names it."""
        return next((rank for pattern, rank in self.ranks if pattern.match(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / rank, rounded once to float32. Raises FormatError where that is not finite."""
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(module)), self.alpha)
        rank = self.rank_of(module)
        scale = alpha / (math.sqrt(rank) if self.root else rank)
        if not abs(scale) <= float(np.finfo(np.float32).max):
            raise FormatError(f"{self.source}: lora_alpha {alpha:g} is out of range", "Correct it, or get it again.")
        return float(np.float32(scale))


def parse_config(content: Mapping[str, object], source: str) -> LoraConfig:
    """The content of an adapter_config.json. Raises FormatError for wrong values, UnsupportedError for adapters of
    other kinds; warns once (CheckpointWarning) of keys that nobody knows."""
    fields = Fields(content, source)
    if fields.get("peft_type") != "LORA":
        _refuse(source, "peft_type", content.get("peft_type"), MERGE)
    for key in _ONLY_OFF:
        if fields.get(key) not in (None, False, [], {}):
            _refuse(source, key, content[key], MERGE)
    if fields.get("bias", "none") != "none":
        _refuse(source, "bias", content["bias"], MERGE)
    beginning = fields.get("init_lora_weights", True)
    if not any(beginning is plain or (isinstance(plain, str) and beginning == plain) for plain in _PLAIN_BEGINNINGS):
        _refuse(source, "init_lora_weights", beginning, f"It changed the model's own weights, too. {MERGE}")
    config = LoraConfig(
        rank=fields.size("r", DEFAULT_RANK),
        alpha=_number(fields, "lora_alpha", DEFAULT_ALPHA),
        root=fields.get("use_rslora") is not None and fields.flag("use_rslora", False),
        ranks=[(pattern, part.size(key)) for pattern, part, key in _patterns(fields, "rank_pattern")],
        alphas=[(pattern, _number(part, key)) for pattern, part, key in _patterns(fields, "alpha_pattern")],
        source=source,
    )
    if unknown := fields.unknown(_WITHOUT_EFFECT):
        warnings.warn(f"{source}: passing over {listed(unknown)}, which are unknown here", CheckpointWarning, 4)
    return config


def _refuse(source: str, key: str, value: object, remedy: str) -> NoReturn:
    raise UnsupportedError(f"{source}: {key} is {shown(value)}, and only plain LoRA is run here", remedy)


def _number(fields: Fields, key: str, default: float | None = None) -> float:
    if default is not None and key not in fields.mapping:
        fields.get(key)
        return default
    number = fields.optional_number(key, lambda value: True, "a number")
    if number is None:
        fields.fail(key, "a number")
    return number


def _patterns(fields: Fields, key: str) -> list[tuple[re.Pattern[str], Fields, str]]:
    """The patterns of a field, each with the object and the key that its value is under."""
    part = fields.part(key)
    keys = list(part.mapping)
    expressions = [pattern for pattern in keys if not re.fullmatch(r"\^?[\w.\\]+", pattern)]
    if len(keys) > MOST_PATTERNS or len(expressions) > MOST_EXPRESSIONS:
        raise UnsupportedError(f"{fields.source}: {key} has {len(keys):,} patterns: too many", "Name fewer modules.")
    return [(_compiled(pattern, f"{fields.source}: {key}"), part, pattern) for pattern in keys]


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    """What matches the end of a module's name, from a dot on, as PEFT has it. Refuses expressions that could take for
    ever: those that repeat groups, or repeat or branch too often."""
    repeats, groups = len(re.findall(r"[*+?{]", pattern)), pattern.count("(")
    slow = repeats > 2 or groups > 2 or re.search(r"\)[*+?{]", pattern) or pattern.count("|") > 32
    if slow or len(pattern) > MOST_PATTERN_LENGTH or not pattern:
        raise UnsupportedError(f"{where} has the pattern {shown(pattern)}: too complex", "Name the modules plainly.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read otherwise
            return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError):
        raise FormatError(f"{where} has {shown(pattern)}, no regular expression", "Name the modules plainly.") from None
