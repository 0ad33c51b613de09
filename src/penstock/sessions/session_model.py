"""Which model a session's file is of: the first record, and what it is held against."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from penstock.errors import SessionError
from penstock.models.kv_dtypes import KV_ITEM_BYTES
from penstock.sessions.fields import RecordFields
from penstock.sessions.identity import adapter_difference, difference, identity_fields
from penstock.sessions.log import NewRecord
from penstock.sessions.state import MODEL
from penstock.weights.identity import model_identity

if TYPE_CHECKING:
    from penstock.adapters.adapter import Adapter
    from penstock.llm import LLM


class SessionModel:
    """A model, an adapter or none, and the type of its keys and values, as a session's file tells them."""

    def __init__(self, llm: LLM, adapter: Adapter | None, name: str) -> None:
        """`name`: of the session, in errors."""
        self._llm = llm
        self._adapter = adapter
        self._name = name

    def record(self) -> NewRecord:
        """What the file begins with."""
        through = "" if self._adapter is None else f" and the adapter {self._adapter.path}"
        return NewRecord(MODEL, {**self._identity, "model": f"{self._llm.path}{through}"})

    @cached_property
    def _identity(self) -> dict[str, Any]:
        identity = model_identity(self._llm.config, self._llm.tensors)
        if self._adapter is not None:
            identity["adapter"] = self._adapter.digest
        return {"identity": identity, "kv": asdict(self._llm.kv_shape)}

    def check(self, meta: object) -> None:
        """Raise SessionError unless the file is of this model and KV type, ValueError where it tells no model."""
        here = self._identity
        said = RecordFields(meta, (*here, "model"))
        identity = said.part("identity", identity_fields(said["identity"]))
        kv = said.part("kv", here["kv"])
        dtype, own = kv["dtype"], here["kv"]["dtype"]
        if not isinstance(identity["config"], dict) or dtype not in list(KV_ITEM_BYTES):
            raise ValueError
        differs = difference(identity.all, here["identity"])
        if differs is not None:
            raise SessionError(
                f"{self._name} was made with another model than {self._llm.path}, with {said['model']}: {differs}.",
                "Open it with the model that made it, or begin another session.",
            )
        adapter_differs = adapter_difference(identity.all, here["identity"])
        if adapter_differs is not None:
            raise SessionError(
                f"{self._name} was made {adapter_differs}, by {said['model']}; its keys and values are of no use here.",
                "Open it with what made it (--adapter), or begin another session.",
            )
        if dtype != own:
            raise SessionError(
                f"{self._name} has keys and values in {dtype}, and this run would have them in {own}.",
                f"Add --kv-dtype {dtype}, or begin another session.",
            )
        if kv.all != here["kv"]:
            raise ValueError
