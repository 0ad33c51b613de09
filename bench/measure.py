"""One run of one contestant under limits, and what came of it."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from contestants import PENSTOCK
from limit import Limits, Report, run_limited
from results import Result

PROBE = Path(__file__).resolve().with_name("probe.py")


@dataclass(frozen=True)
class Setting:
    """What all contestants share. `packed` is the same model packed, for Penstock; `device` the disk's "MAJOR:MINOR",
    `scratch` a directory of this run alone."""

    model: Path
    packed: Path | None
    scratch: Path
    device: str
    read: int | None
    memory: int
    peer_memory: int
    threads: int
    tokens: int
    timeout: float

    def copy_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.model.glob("*.safetensors"))


def measure(name: str, command: list[str], memory: int, setting: Setting) -> Result:
    """Run one contestant in a group with `memory` bytes, and the disk probe before it."""
    disk = probe(setting)
    with tempfile.TemporaryFile(dir=setting.scratch) as out, tempfile.TemporaryFile(dir=setting.scratch) as errors:
        limits = Limits(memory, setting.read, setting.device)
        report = run_limited(command, limits, stdout=out, stderr=errors, timeout=setting.timeout)
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    result = result_of(name, report, *texts)
    return replace(result, memory_cap_bytes=memory, disk_bytes_per_second=disk)


def result_of(name: str, report: Report, output: str, errors: str) -> Result:
    """The record of one run, from what it printed: one JSON object, where all went well."""
    result = Result(name, peak_bytes=report.peak_bytes, oom_kills=report.oom_kills)
    if report.timed_out:
        return replace(result, note=f"stopped after {report.seconds:.0f} s (--timeout)")
    if report.exit_status:
        memory = " for memory" if report.oom_kills else ""
        how = f"killed{memory}" if report.exit_status < 0 else f"exited with {report.exit_status}"
        return replace(result, note=f"{how}: {last_line(errors)}", details={"errors": errors[-4000:]})
    try:
        details = json.loads(output)
        seconds = details["seconds_per_pass" if name == PENSTOCK else "seconds_per_token"]
        opening = details["open_seconds"]
    except (ValueError, KeyError, TypeError) as error:
        return replace(result, note=f"printed no result ({error!r})", details={"output": output[-4000:]})
    version = str(details.get("version", ""))
    return replace(result, version=version, open_seconds=opening, seconds_per_token=seconds, details=details)


def probe(setting: Setting) -> float | None:
    """Bytes a second of direct reads of the model's files under the cap on reads; None where there are none."""
    files = [str(file) for file in sorted(setting.model.glob("*.safetensors"))]
    with tempfile.TemporaryFile(dir=setting.scratch) as out:
        command = [sys.executable, str(PROBE), *files]
        run_limited(command, Limits(None, setting.read, setting.device), stdout=out, timeout=setting.timeout)
        out.seek(0)
        with suppress(ValueError):  # a file system without direct reads
            return float(json.loads(out.read())["bytes_per_second"])
    return None


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if any(map(str.isalnum, line))]
    return lines[-1].strip(" │")[:300] if lines else "it said nothing"
