from __future__ import annotations

import threading

from helpers.assembled import commit, new_cache, open_engine, stage_of
from helpers.cases import CASES
from penstock.events import Event, Events


def test_nobody_listens() -> None:
    Events().tell("read", "x", 0, 1)


def test_listeners_are_told_in_the_thread_of_the_event() -> None:
    events, heard = Events(), list[Event]()
    events.listeners += [heard.append, heard.append]
    thread = threading.Thread(target=events.tell, args=("read", "x", 0.5, 1.5, 7))
    thread.start()
    thread.join()
    [first, second] = heard
    assert first == second == Event("read", "x", 0.5, 1.5, 7, thread.native_id or 0)
    assert thread.native_id != threading.get_native_id()


def test_the_events_of_a_pass(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Every streamed byte is read, waited for and used once; parts follow one another within the pass."""
    heard: list[Event] = []
    with open_engine(CASES["gqa-4"].write(tmp_path)) as engine:
        weights, cache = stage_of(engine).weights, new_cache(engine)
        weights.events.listeners.append(heard.append)
        commit(engine, cache, [1, 2, 3])
        taken = {kind: [e for e in heard if e.kind == kind] for kind in ("wait", "compute", "part", "pass")}
        reads = [e for e in heard if e.kind == "read"]
    assert sum(e.nbytes for e in taken["compute"]) == weights.pass_bytes
    assert sum(e.nbytes for e in reads) >= weights.pass_bytes
    assert [e.name for e in taken["part"]] == ["embedding", "layer 0", "layer 1", "head"]
    [whole] = taken["pass"]
    assert whole.name == "3 rows"
    edges = [time for part in taken["part"] for time in (part.begin, part.end)]
    assert [whole.begin, *edges, whole.end] == sorted([whole.begin, *edges, whole.end])
    assert {e.thread for e in taken["wait"]} == {threading.get_native_id()}
    assert threading.get_native_id() not in {e.thread for e in reads}
