"""Do Penstock's peers compute the same function? Their greedy tokens beside Penstock's, on the demo model.

    python bench/agree.py --torch-python VENV/bin/python --llama-cpp-python VENV/bin/python ...

Peers round to bfloat16 where Penstock does not, so they part from it where its two best tokens are close: where they
do, how close those were is told, in standard deviations of that position's logits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from contestants import ALL_PEERS, PEERS, Peer, add_pythons
from measure import last_line

from penstock import LLM, SamplingParams
from penstock.checkpoints.store import DEMO, find_model
from penstock.errors import PenstockError

sys.path.append(str(PEERS))
from timing import PROMPT  # type: ignore[import-not-found]


def own_tokens(llm: LLM, count: int) -> list[int]:
    params = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=count, ignore_eos=True)
    return list(llm.generate([list(PROMPT)], params)[0].token_ids)


def peer_tokens(peer: Peer, python: str, model: Path, count: int) -> list[int]:
    """The first `count` tokens of a peer. Raises PenstockError, with the peer's last line, where it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        for action, *options in (["prepare"], ["run", "--tokens", str(count - 1)]):
            command = peer.command(python, action, model, Path(scratch) / "copy", *options)
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise PenstockError(f"{action} ended with status {result.returncode}: {last_line(result.stderr)}")
    return list(json.loads(result.stdout)["tokens"])


def gap(llm: LLM, tokens: list[int]) -> float:
    """Between Penstock's two best logits after the prompt and `tokens`, in standard deviations."""
    logits = llm.logits([*PROMPT, *tokens])[-1]
    second, best = np.sort(logits)[-2:]
    return float((best - second) / logits.std())


def verdict(llm: LLM, own: list[int], theirs: list[int]) -> str:
    pairs = zip(own, theirs, strict=True)
    equal = next((index for index, (a, b) in enumerate(pairs) if a != b), len(own))
    if equal == len(own):
        return f"all {equal} tokens equal"
    return f"the first {equal} of {len(own)} tokens equal; the next was {gap(llm, own[:equal]):.4f} from a tie"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pythons(parser)
    parser.add_argument("--tokens", type=int, default=16)
    args = parser.parse_args()
    model = find_model(DEMO)
    with LLM.open(str(model)) as llm:
        own = own_tokens(llm, args.tokens)
        for peer in ALL_PEERS:
            python = getattr(args, peer.name)
            try:
                text = peer.missing(python) or verdict(llm, own, peer_tokens(peer, python, model, args.tokens))
            except PenstockError as error:
                text = f"failed: {error}"
            print(f"{peer.name}: {text}", flush=True)


if __name__ == "__main__":
    main()
