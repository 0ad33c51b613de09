"""A document that an earlier process has read: the prefix cache beside computing, in the server, `run` and a session.

    python bench/prefix_cache.py MODEL --work DIR [--memory 600MiB] [--tokens 3000]

A server computes the first prompt, and is killed (SIGKILL) at its first token. Every later process asks another
question about the same document, first of all a second server. Then a bit is flipped in the last block, two processes
read at once, and the limit is lowered. Seconds are those from the request, or the submitted prompt, to the first token.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from penstock.prefix_cache.folder import SUBFOLDER
from penstock.text.tokenizer import Tokenizer

TEXTS = Path(__file__).resolve().parents[1] / "docs"
PENSTOCK = [sys.executable, "-m", "penstock"]


def document(model: Path, tokens: int) -> str:
    """A text of about so many tokens."""
    text = "".join(path.read_text() for path in sorted(TEXTS.glob("*.md")))[: 8 * tokens]
    tokenizer = Tokenizer.open(model)
    assert tokenizer is not None
    return tokenizer.decode(tokenizer.encode(text)[:tokens])


def ask_server(options: list[str], prompt: str) -> tuple[float, dict[str, Any]]:
    """Seconds to the first token of a new server's first answer, and its usage; it is killed then."""
    server = subprocess.Popen([*PENSTOCK, "serve", *options, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None, "the server did not start"
        body = {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": 8, "temperature": 0}
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{found[0]}/v1/chat/completions", json.dumps(body).encode(), headers)
        begin = time.perf_counter()
        with urllib.request.urlopen(request) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    if chunk["choices"][0]["delta"].get("content"):
                        return time.perf_counter() - begin, chunk["usage"]
        raise AssertionError("no answer")
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def start(options: list[str], prompt: str) -> subprocess.Popen[str]:
    command = [*PENSTOCK, "run", *options, "--json", "--max-tokens", "8", "--temperature", "0", "--no-stdin"]
    return subprocess.Popen([*command, prompt], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def result(running: subprocess.Popen[str]) -> tuple[str, dict[str, Any]]:
    lines = running.communicate()[0].splitlines()
    assert running.returncode == 0, lines
    for told in lines[:-1]:
        print("  told:", told)
    said = json.loads(lines[-1])
    return said["text"], said["stats"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="A new folder, which is removed in the end.")
    parser.add_argument("--memory", default="600MiB")
    parser.add_argument("--tokens", type=int, default=3000)
    given = parser.parse_args()
    given.work.mkdir()
    plain = [str(given.model), "--memory", given.memory]
    options = [*plain, "--prefix-cache", str(given.work / "cache")]
    text = document(given.model, given.tokens)
    questions = [f"{text}\n\n{question}" for question in ("What is this?", "Who is it for?", "How is it begun?")]

    first, usage = ask_server(options, questions[0])

    def show(name: str, seconds: float, prompt_tokens: int, cached: int) -> None:
        print(f"{name:>34}: {seconds:7.2f} s, {seconds / first:6.1%}, {cached} of {prompt_tokens} tokens", flush=True)

    def size() -> int:
        return sum(path.stat().st_size for path in (given.work / "cache" / SUBFOLDER).iterdir())

    def show_run(name: str, stats: dict[str, Any]) -> None:
        show(name, stats["first_token_seconds"], stats["prompt_tokens"], stats["cached_tokens"])

    show("server", first, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])
    print(f"{'the cache then':>34}: {size() / 1e6:.1f} MB")
    seconds, usage = ask_server(options, questions[1])
    show(
        "server, killed and started again",
        seconds,
        usage["prompt_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
    )
    answer, stats = result(start(options, questions[1]))
    show_run("run", stats)
    _, stats = result(start([*options, "--session", str(given.work / "talk.session")], questions[2]))
    show_run("run, a new session", stats)
    blocks = sorted((given.work / "cache" / SUBFOLDER).glob("*.kv"), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(blocks[0].read_bytes())
    data[len(data) // 2] ^= 1
    blocks[0].write_bytes(data)
    again, stats = result(start(options, questions[1]))
    show_run("run, a bit flipped in a block", stats)
    assert again == answer, (again, answer)
    both = [start(options, question) for question in questions[1:]]
    for number, running in enumerate(both):
        again, stats = result(running)
        show_run(f"run, one of two at once ({number + 1})", stats)
        assert number or again == answer
    _, stats = result(start([*options, "--prefix-cache-size", "20MB"], questions[1][: len(text) // 8]))
    show_run("run, an eighth, limit 20 MB", stats)
    print(f"{'the cache then':>34}: {size() / 1e6:.1f} MB")
    shutil.rmtree(given.work)


if __name__ == "__main__":
    main()
