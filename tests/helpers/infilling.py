"""The demo model with a tokenizer that has tokens for filling in a middle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

DEMO = Path(__file__).parents[2] / "src" / "penstock" / "data" / "demo"
QWEN = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")


def with_tokens(directory: Path, names: Sequence[str] = QWEN, *, special: bool = False) -> Path:
    """A copy of the demo model, in which `names` are added tokens in the place of the last ones; Qwen's are no special
    ones."""
    shutil.copytree(DEMO, directory, dirs_exist_ok=True)
    content = json.loads((DEMO / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    first = len(vocab) - len(names)
    gone = {token for token, number in vocab.items() if number >= first}
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "".join(pair) not in gone]
    content["model"]["vocab"] = {token: number for token, number in vocab.items() if token not in gone}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    for number, name in enumerate(names, first):
        content["model"]["vocab"][name] = number
        content["added_tokens"].append({"id": number, "content": name, **flags})
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory
