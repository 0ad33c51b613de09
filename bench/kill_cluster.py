"""Kills, stops and removes machines of a cluster at random moments of answers, and compares with one machine's tokens.

    python bench/kill_cluster.py                               # 60 losses, the demo model over three machines
    python bench/kill_cluster.py --model MODEL --losses 20 --tokens 48 --seed 7

The machines are nodes of Ray on this one. Each answer loses one to three of them: its process is killed (SIGKILL) or
stopped (SIGSTOP), or the node with it (its raylet too), after which another takes its name; amid a pass or between
two. Answers are greedy or drawn, of one prompt or of three that share passes. Tokens have to be those of an undisturbed
run. Exits with 1 where they are not.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from penstock.cluster.fleet import MEMORY
from penstock.cluster.settings import Membership, new_token

HOW = ("killed", "stopped", "removed")
OBJECT_STORE_BYTES = 78_643_200
PORT = 6398
ADDRESS = f"127.0.0.1:{PORT}"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
PROMPTS = ("def main(", "import os\n\nclass Stack:\n", "for line in lines:\n    ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--losses", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--memory", default="400MiB")
    parser.add_argument("--cut", default="0-1,2-3,4-5", help="which layers each of the three has")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        token = Path(folder) / "token"
        new_token(token)
        os.environ.update(Membership("", str(token)).environment())  # before Ray is imported
        return _Trial(asked).run()


class _Trial:
    def __init__(self, asked: argparse.Namespace) -> None:
        import ray

        self._ray, self._asked, self._chance = ray, asked, random.Random(asked.seed)
        _ray_start("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", "--no-monitor")
        self._names = ("one", "two")
        for name in self._names:
            add_node(name)
        self._went_on: dict[str, list[float]] = defaultdict(list)
        self._stopped: list[int] = []
        """Processes."""
        self._seconds = 0.1
        """What a pass takes."""

    def run(self) -> int:
        from penstock import LLM, SamplingParams

        asked, wrong, answers = self._asked, 0, 0
        open_one = {"memory": asked.memory, "draft": "none"}
        kinds = [(temperature, count) for temperature in (0.0, 0.8) for count in (1, 3)]
        params = {
            t: SamplingParams(temperature=t, seed=1, max_tokens=asked.tokens, ignore_eos=True) for t in (0.0, 0.8)
        }
        with LLM.open(asked.model, **open_one) as llm:
            expected = {
                kind: [output.token_ids for output in llm.generate(PROMPTS[: kind[1]], params[kind[0]])]
                for kind in kinds
            }
        with LLM.open(asked.model, cluster=ADDRESS, cut=asked.cut, **open_one) as llm:
            while self.losses < asked.losses:
                kind = kinds[answers % len(kinds)]
                got = self._answer(llm, PROMPTS[: kind[1]], params[kind[0]])
                answers += 1
                if got != expected[kind]:
                    wrong += 1
                    print(f"answer {answers}: other tokens", flush=True)
        self._ray.shutdown()
        subprocess.run([*RAY, "stop", "--force"], stdout=subprocess.DEVNULL, check=True)
        print(
            f"{self.losses} losses in {answers} answers, {answers - wrong} of {answers} with the tokens of one machine"
        )
        for how, seconds in self._went_on.items():
            print(
                f"{how}: {len(seconds)}; went on after {statistics.median(seconds):.1f} s, at most {max(seconds):.1f}"
            )
        return int(wrong > 0)

    @property
    def losses(self) -> int:
        return sum(map(len, self._went_on.values()))

    def _answer(self, llm: Any, prompts: tuple[str, ...], params: Any) -> list[list[int]]:
        """The tokens of one run, some of whose passes lose a machine."""
        completions = [llm.submit(prompt, params) for prompt in prompts]
        at = sorted(self._chance.sample(range(self._asked.tokens - 1), self._chance.randint(1, 3)))
        passes = 0
        while llm.busy:
            if passes in at:
                how, lose = self._loss(llm)
                timer = threading.Timer(self._chance.uniform(0, 2 * self._seconds), lose)
                timer.start()
                begin = time.monotonic()
                while timer.is_alive() and llm.busy:
                    llm.step()
                timer.join()
                if llm.busy:
                    llm.step()
                self._went_on[how].append(time.monotonic() - begin)
                self._restore()
            else:
                begin = time.monotonic()
                llm.step()
                self._seconds = time.monotonic() - begin
            passes += 1
        for completion in completions:
            llm.cancel(completion)
        return [completion.sequence.token_ids for completion in completions]

    def _loss(self, llm: Any) -> tuple[str, Callable[[], None]]:
        """How a machine is to be lost, and what does it."""
        how, name = self._chance.choice(HOW), self._chance.choice(self._names)
        stage = next(stage for stage in llm.chain.stages if getattr(stage, "name", "") == name)
        pid = int(self._ray.get(stage.line._actor.__ray_call__.remote(lambda _: os.getpid())))

        def lose() -> None:
            os.kill(pid, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
            if how == "stopped":
                self._stopped.append(pid)
            if how == "removed":
                remove_node(name)
                add_node(name)

        return how, lose

    def _restore(self) -> None:
        """End what was stopped: Ray cannot end it."""
        for pid in self._stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._stopped.clear()


def add_node(name: str) -> None:
    _ray_start(f"--address={ADDRESS}", f"--node-name={name}", "--num-cpus=1", f'--resources={{"{MEMORY}": 400}}')


def remove_node(name: str) -> None:
    """Kill its raylet, as if the machine were gone, and all that it started."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if command and command[0].endswith("/raylet") and f"--node-name={name}" in command:
                own = process.children(recursive=True)
                process.kill()
                for child in own:
                    child.kill()


def _ray_start(*options: str) -> None:
    fixed = (f"--object-store-memory={OBJECT_STORE_BYTES}", "--include-log-monitor=false", "--disable-usage-stats")
    subprocess.run([*RAY, "start", *options, *fixed], stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    sys.exit(main())
