"""`penstock show`: what a model is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from penstock.checkpoints.store import find_model
from penstock.cli import options as opt
from penstock.cli.list_models import format_count
from penstock.cli.status_line import visible
from penstock.cli.units import format_size
from penstock.cli.whole_lines import tell

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from penstock.checkpoints.description import Description


def show_model(
    model: opt.Model,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Tell whether this LoRA adapter fits the model, and what it has.", metavar="[NAME=]DIR"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Tell what a model is: family and sizes, how its weights are stored, chat template, how tokens are drawn."""
    told = as_object(model, adapter or ())
    if as_json:
        print(json.dumps(told))
    else:
        tell(Console(highlight=False), *(f"[dim]{name:18}[/]{escape(visible(text))}" for name, text in lines(told)))


def as_object(model: str, adapters: Sequence[str] = ()) -> dict[str, Any]:
    """What `--json` says. Raises PenstockError for what is no model that runs, and for adapters that do not fit."""
    from penstock.adapters.named import open_adapters
    from penstock.checkpoints.checkpoint import generation_defaults
    from penstock.checkpoints.description import describe
    from penstock.models.kv_planes import KvShape
    from penstock.text.tokenizer import Tokenizer

    path = find_model(model)
    described = describe(path)
    config, tokenizer = described.checkpoint.config, Tokenizer.open(path)
    defaults = asdict(generation_defaults(path))
    kv = {kind: KvShape.of(config, kind, config.num_hidden_layers).slot_bytes for kind in ("bf16", "f32")}
    opened = open_adapters(adapters, described.checkpoint.architecture)
    return {
        "name": model,
        "path": str(path),
        "family": described.family,
        "parameters": described.parameters,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "experts": None
        if config.experts is None
        else {"count": config.experts.count, "per_token": config.experts.per_token},
        "parameters_per_token": described.checkpoint.architecture.weights_per_row,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "kv_bytes_per_token": kv,
        **_weights(described),
        "tokenizer": tokenizer is not None,
        "chat_template": tokenizer is not None and tokenizer.has_chat_template,
        "sampling": {name: value for name, value in defaults.items() if value is not None},
        "adapters": {
            name: {"path": str(one.path), "rank": one.rank, "matrices": len(one.matrices), "bytes": one.nbytes}
            for name, one in opened.items()
        },
    }


def _weights(described: Description) -> dict[str, Any]:
    return {
        "tensors": len(described.checkpoint.tensors),
        "dtypes": described.dtypes,
        "files": len(described.checkpoint.files),
        "weight_bytes": described.weight_bytes,
        "form": described.form,
        "packed_ratio": described.packed_ratio,
        "tuned": described.tuned,
    }


def lines(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The same for people: what, and how much."""
    yield "model", told["name"]
    yield "directory", told["path"]
    yield "family", f"{told['family']}, {format_count(told['parameters'])} weights"
    heads = f"{told['attention_heads']} heads of {told['head_dim']}, {told['key_value_heads']} of keys and values"
    yield "layers", f"{told['layers']}, hidden size {told['hidden_size']:,}; {heads}"
    if told["experts"] is not None:
        count, chosen = told["experts"]["count"], told["experts"]["per_token"]
        active = format_count(told["parameters_per_token"])
        yield "experts", f"{count} a layer, {chosen} for each token, which meets {active} weights in all"
    yield "vocabulary", f"{told['vocabulary']:,} tokens"
    kv = ", ".join(f"{nbytes:,} bytes in {kind}" for kind, nbytes in told["kv_bytes_per_token"].items())
    yield "context", f"{told['context']:,} tokens; keys and values of each: {kv}"
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in told["dtypes"].items())
    files = f"{told['files']:,} file{'s' * (told['files'] != 1)}"
    yield "tensors", f"{dtypes}, in {files}, {format_size(told['weight_bytes'])}"
    yield "packed", _packed(told)
    yield "chat template", "yes" if told["chat_template"] else "no" if told["tokenizer"] else "no, and no tokenizer"
    yield "drawn by default", _sampling(told["sampling"])
    for name, one in told["adapters"].items():
        yield "adapter", f"{name} fits: rank {one['rank']}, {one['matrices']} matrices, {format_size(one['bytes'])}"


def _packed(told: dict[str, Any]) -> str:
    if told["form"] != "packed":
        return f"no ({told['form']})"
    if told["experts"] is not None:
        return f"yes, {told['packed_ratio']:.3f} of the original bytes"
    tuned = "tuned" if told["tuned"] else "not tuned (`penstock tune` makes guesses better)"
    return f"yes, {told['packed_ratio']:.3f} of the original bytes; {tuned}"


def _sampling(sampling: dict[str, Any]) -> str:
    """In the words of the command line."""
    if not sampling["do_sample"]:
        drawn = ["greedy"]
    else:
        names = [name for name in sampling if name not in ("do_sample", "eos_token_ids")]
        drawn = [f"{name.replace('_', '-')} {sampling[name]}" for name in names] or ["temperature 1.0"]
    stops = ", ".join(map(str, sampling["eos_token_ids"]))
    return ", ".join(drawn) + (f"; stops at token {stops}" if stops else "")
