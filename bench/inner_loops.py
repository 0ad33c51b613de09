"""Instructions that the kernels' inner loops take for a weight, counted in compiled objects; nothing is run.

    python bench/inner_loops.py OBJECT [--objdump aarch64-linux-gnu-objdump] [--mca llvm-mca --cpu neoverse-n1]

OBJECT is that of cpp/kernels/isa/avx2.cpp or neon.cpp. With --mca also the cycles that LLVM's model of a CPU has for
them, with all data in the first level of its cache: a bound from below, as good as that model.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from dataclasses import dataclass

FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>.*)>:$")
INSTRUCTION = re.compile(r"^\s*(?P<at>[0-9a-f]+):\s+(?P<name>\S+)\s*(?P<operands>.*)$")
JUMP = re.compile(r"^(b|b\..*|cbn?z|tbn?z|j.*)$")
DOTS = ("sdot", "smull2", "vpmaddubsw", "vpdpbusd")


@dataclass(frozen=True)
class Loop:
    """Instructions with their operands, the jump back last."""

    body: tuple[tuple[str, str], ...]

    def count(self, *starts: str) -> int:
        return sum(name.startswith(starts) for name, _ in self.body)

    @property
    def vector_bytes(self) -> int:
        return 32 if any("ymm" in operands for _, operands in self.body) else 16

    @property
    def products(self) -> int:
        """Of floats, or of bytes."""
        return self.count("fmla", "vfmadd") * self.vector_bytes // 4 + self.count(*DOTS) * self.vector_bytes


@dataclass(frozen=True)
class Kind:
    """What a loop does, and where it is: of the loops of the first function whose name matches, the one with so many
    products in which each takes the fewest instructions, or, where it has none, the last one that is large."""

    what: str
    function: str
    fetches: bool
    products: int | None = None

    def choose(self, loops: list[Loop]) -> Loop | None:
        if self.products == 0:
            return next((loop for loop in reversed(loops) if len(loop.body) > 60 and loop.products == 0), None)
        fit = [loop for loop in loops if loop.products > 0 and (loop.count("prf", "prefetch") > 0) == self.fetches]
        fit = [loop for loop in fit if self.products in (None, loop.products)]
        return min(fit, key=lambda loop: len(loop.body) / loop.products, default=None)


KINDS = (
    Kind("BF16, one row", r"RawWeights<.*\)0> >::direct_tile<1, 2>", True),
    Kind("BF16, tile of 3 x 2, widened before", r"RawWeights<.*\)0> >::add_block<3, 2>", True),
    Kind("indexed, one row", r"MatmulIndexed<.*::tile<1, 2, 0, 1>", True),
    Kind("packed, exponents, without levels", r"unpack_exponents<.*, 4>", False, 0),
    Kind("packed, one row, exponents known", r" matmul_packed<", True, 128),
    Kind("coarse draft, one row", r"CoarseLevels<.*::direct_tile<1, [24]>", False),
)


def functions(disassembly: str) -> dict[str, list[Loop]]:
    """The innermost loops of each function, in order."""
    result: dict[str, list[Loop]] = {}
    for block in disassembly.split("\n\n"):
        lines = block.strip("\n").splitlines()
        if lines and (match := FUNCTION.match(lines[0])):
            name = match["name"].replace("penstock::(anonymous namespace)::", "").replace("penstock::", "")
            result[name] = innermost([found for line in lines[1:] if (found := INSTRUCTION.match(line))])
    return result


def innermost(instructions: list[re.Match[str]]) -> list[Loop]:
    place = {int(found["at"], 16): i for i, found in enumerate(instructions)}
    spans = []
    for i, found in enumerate(instructions):
        target = re.search(r"(?:^|, ?)([0-9a-f]+) <", found["operands"])
        if JUMP.match(found["name"]) and target and place.get(int(target[1], 16), i + 1) <= i:
            spans.append((place[int(target[1], 16)], i))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [Loop(tuple((x["name"], x["operands"]) for x in instructions[first : last + 1])) for first, last in inner]


def cycles(loop: Loop, mca: str, cpu: str) -> float:
    """Of one turn, by llvm-mca, without the jumps."""
    triple = "x86_64" if loop.vector_bytes == 32 else "aarch64-linux-gnu"
    operands = [(name, re.sub(r"\s*//.*|<.*", "", text)) for name, text in loop.body if not JUMP.match(name)]
    source = "\n".join(f"{name} {text}" for name, text in operands)
    command = [mca, f"-mtriple={triple}", f"-mcpu={cpu}", "-iterations=200"]
    if triple != "x86_64":
        command.append("-mattr=+dotprod")
    result = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    match = re.search(r"Total Cycles:\s+(\d+)", result.stdout)
    assert match is not None
    return int(match[1]) / 200


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("object")
    parser.add_argument("--objdump", default="objdump")
    parser.add_argument("--mca")
    parser.add_argument("--cpu", action="append", default=[])
    options = parser.parse_args()
    command = [options.objdump, "-dC", "--no-show-raw-insn", options.object]
    found = functions(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for kind in KINDS:
        loops = next((loops for name, loops in found.items() if re.search(kind.function, " " + name)), [])
        if (loop := kind.choose(loops)) is None:
            print(f"{kind.what}: not found")
            continue
        weights = loop.products or 64
        line = f"{kind.what}: {len(loop.body)} instructions for {weights}, {len(loop.body) / weights:.2f} each"
        for cpu in options.cpu if options.mca else ():
            line += f"; {cpu} {cycles(loop, options.mca, cpu) / weights:.3f} cycles"
        print(line)


if __name__ == "__main__":
    main()
