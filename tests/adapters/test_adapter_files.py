"""What is read of an adapter's files, what is refused, and that no file does more harm than a sentence."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.adapters import CONFIG, LoraCase, key, write_adapter
from helpers.cases import CASES
from penstock.adapters.adapter import Adapter, open_adapter
from penstock.adapters.config import parse_config
from penstock.adapters.named import adapter_places, check_names, open_adapters
from penstock.architectures.base import Architecture
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.errors import (
    CheckpointError,
    CheckpointWarning,
    FormatError,
    MemoryCeilingError,
    PenstockError,
    UnsupportedError,
    UsageError,
)

Q = "model.layers.0.self_attn.q_proj"
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CASES["gqa-4"].write(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def architecture(model: Path) -> Architecture:
    return open_checkpoint(model).architecture


@pytest.fixture
def path(tmp_path: Path, model: Path) -> Path:
    return LoraCase().write(tmp_path / "style", model)


def opened(path: Path, architecture: Architecture) -> Adapter:
    return open_adapter("style", path, architecture)


def edit(path: Path, **changes: Any) -> None:
    config = json.loads((path / "adapter_config.json").read_text()) | changes
    (path / "adapter_config.json").write_text(json.dumps(config))


class TestScales:
    def scales(self, model: Path, path: Path, architecture: Architecture, case: LoraCase) -> dict[str, float]:
        adapter = opened(case.write(path, model), architecture)
        return {name.removesuffix(".weight"): one.scale for name, one in adapter.matrices.items()}

    def test_alpha_to_rank(self, tmp_path: Path, model: Path, architecture: Architecture) -> None:
        scales = self.scales(model, tmp_path / "a", architecture, LoraCase(rank=4, alpha=10))
        assert set(scales.values()) == {2.5}
        assert len(scales) == 14

    def test_alpha_to_the_root_of_the_rank(self, tmp_path: Path, model: Path, architecture: Architecture) -> None:
        scales = self.scales(model, tmp_path / "a", architecture, LoraCase(rank=3, alpha=2, rslora=True))
        assert set(scales.values()) == {float(np.float32(2 / math.sqrt(3)))}

    def test_patterns(self, tmp_path: Path, model: Path, architecture: Architecture) -> None:
        case = LoraCase(rank=2, alpha=6, ranks={"q_proj": 3, "layers.1.mlp.down_proj": 1}, alphas={"down_proj": 5})
        scales = self.scales(model, tmp_path / "a", architecture, case)
        assert scales[Q] == 2
        assert scales[LAYER] == 5
        assert scales["model.layers.0.mlp.down_proj"] == 2.5
        assert scales["model.layers.0.mlp.up_proj"] == 3

    @pytest.mark.parametrize(
        ("pattern", "modules"),
        [
            ("q_proj", [Q]),
            ("proj", []),
            ("self_attn.q_proj", [Q]),
            (r"layers\.[0-9]+\.self_attn\.q_proj", [Q]),
            (r"model.layers.1..*", [LAYER]),
            ("(q|down)_proj", [Q, LAYER]),
            (f"^{Q}", [Q]),
            ("^q_proj", []),
        ],
    )
    def test_which_modules_a_pattern_names(self, pattern: str, modules: list[str]) -> None:
        """As peft 0.21 has it: the end of the name, from a dot on."""
        config = parse_config(CONFIG | {"r": 2, "rank_pattern": {pattern: 5}}, "here")
        assert [module for module in (Q, LAYER) if config.rank_of(module) == 5] == modules

    def test_the_first_pattern_counts(self) -> None:
        config = parse_config(CONFIG | {"r": 2, "rank_pattern": {"q_proj": 3, "self_attn.q_proj": 4}}, "here")
        assert config.rank_of(Q) == 3


REFUSED: dict[str, dict[str, Any]] = {
    "peft_type is 'LOHA'": {"peft_type": "LOHA"},
    "use_dora is True": {"use_dora": True},
    "bias is 'all'": {"bias": "all"},
    "fan_in_fan_out is True": {"fan_in_fan_out": True},
    "modules_to_save is ['lm_head']": {"modules_to_save": ["lm_head"]},
    "lora_bias is True": {"lora_bias": True},
    "target_parameters is ['x']": {"target_parameters": ["x"]},
    "layer_replication is [[0, 2]]": {"layer_replication": [[0, 2]]},
    "trainable_token_indices is [5]": {"trainable_token_indices": [5]},
    "alora_invocation_tokens is [1, 2]": {"alora_invocation_tokens": [1, 2]},
    "init_lora_weights is 'pissa_niter_4'": {"init_lora_weights": "pissa_niter_4"},
    "init_lora_weights is 'olora'": {"init_lora_weights": "olora"},
    "init_lora_weights is 'corda'": {"init_lora_weights": "corda"},
    "init_lora_weights is 'loftq'": {"init_lora_weights": "loftq"},
    "rank_pattern has the pattern '(a+)+'": {"rank_pattern": {"(a+)+": 4}},
    "alpha_pattern has the pattern '.*.*.*q'": {"alpha_pattern": {".*.*.*q": 4}},
}


@pytest.mark.parametrize("problem", REFUSED)
def test_other_kinds(path: Path, architecture: Architecture, problem: str) -> None:
    edit(path, **REFUSED[problem])
    with pytest.raises(UnsupportedError) as error:
        opened(path, architecture)
    assert error.value.problem.startswith(f"{path}/adapter_config.json: {problem}")
    assert error.value.remedy


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"r": 0}, "r is 0, not a positive integer below 2**31"),
        ({"r": 4.0}, "r is 4.0, not a positive integer below 2**31"),
        ({"lora_alpha": None}, "lora_alpha is None, not a number"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', not a number"),
        ({"lora_alpha": 1e300}, "lora_alpha 1e+300 is out of range"),
        ({"use_rslora": 1}, "use_rslora is 1, not true or false"),
        ({"rank_pattern": []}, "rank_pattern is [], not an object or null"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern.q_proj is -1, not a positive integer below 2**31"),
        ({"alpha_pattern": {"[": 1}}, "alpha_pattern has '[', no regular expression"),
    ],
)
def test_wrong_values(path: Path, architecture: Architecture, changes: dict[str, Any], problem: str) -> None:
    edit(path, **changes)
    with pytest.raises(FormatError) as error:
        opened(path, architecture)
    assert error.value.problem == f"{path}/adapter_config.json: {problem}"


def test_unknown_keys_warn_once(path: Path, architecture: Architecture) -> None:
    edit(path, one_day=True, use_more=3)
    with pytest.warns(CheckpointWarning, match="passing over 'one_day', 'use_more', which are unknown") as told:
        opened(path, architecture)
    assert len(told) == 1


def test_keys_that_change_nothing_are_silent(path: Path, architecture: Architecture) -> None:
    edit(path, layers_to_transform=[0], eva_config=None, loftq_config={}, lora_dropout=0.1, rank_pattern=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(path, architecture)


def _change(module: str, letter: str, change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any]], None]:
    def edited(tensors: dict[str, Any]) -> None:
        tensors[key(module, letter)] = change(tensors[key(module, letter)])

    return edited


def _move(module: str, to: str) -> Callable[[dict[str, Any]], None]:
    def edited(tensors: dict[str, Any]) -> None:
        for letter in "AB":
            tensors[key(to, letter)] = tensors.pop(key(module, letter))

    return edited


TENSORS: dict[str, tuple[type[PenstockError], Callable[[dict[str, Any]], object]]] = {
    "has the tensor 'base_model.model.score.weight', which is no lora_A": (
        UnsupportedError,
        lambda tensors: tensors.update({"base_model.model.score.weight": np.zeros((2, 2), np.float32)}),
    ),
    "which is no lora_A or lora_B of a module": (
        UnsupportedError,
        lambda tensors: tensors.update({f"base_model.model.{Q}.lora_magnitude_vector": np.zeros(2, np.float32)}),
    ),
    "has no tensors": (FormatError, lambda tensors: tensors.clear()),
    f"has only one of lora_A and lora_B for {Q}.weight": (FormatError, lambda tensors: tensors.pop(key(Q, "B"))),
    "are [4, 31] and [128, 4], not [r, 32] and [128, r]": (CheckpointError, _change(Q, "A", lambda a: a[:, 1:].copy())),
    "are [4, 32] and [126, 4], not [r, 32] and [128, r]": (CheckpointError, _change(Q, "B", lambda b: b[2:].copy())),
    "are [4, 32] and [128, 3], not [r, 32] and [128, r]": (CheckpointError, _change(Q, "B", lambda b: b[:, 1:].copy())),
    "are [128] and [128, 4], not": (CheckpointError, _change(Q, "A", lambda a: a.reshape(-1))),
    "are [] and [128, 4], not": (CheckpointError, _change(Q, "A", lambda a: np.zeros((), np.float32))),
    "are [0, 32] and [128, 0], not": (
        CheckpointError,
        lambda tensors: tensors.update(
            {key(Q, "A"): np.zeros((0, 32), np.float32), key(Q, "B"): np.zeros((128, 0), np.float32)}
        ),
    ),
    "has rank 3, and adapter_config.json says 4": (
        FormatError,
        lambda tensors: tensors.update(
            {key(Q, "A"): np.zeros((3, 32), np.float32), key(Q, "B"): np.zeros((128, 3), np.float32)}
        ),
    ),
    "adapts 'lm_head.weight': only matrices of layers": (UnsupportedError, _move(Q, "lm_head")),
    "adapts 'model.embed_tokens.weight': only matrices of layers": (UnsupportedError, _move(Q, "model.embed_tokens")),
    "adapts 'model.layers.2.self_attn.q_proj.weight', which the model does not have": (
        CheckpointError,
        _move(Q, "model.layers.2.self_attn.q_proj"),
    ),
    "under two names": (
        FormatError,
        lambda tensors: tensors.update(
            {key(f"model.language_model.{Q.removeprefix('model.')}", "A"): np.zeros((4, 32), np.float32)}
        ),
    ),
}


@pytest.mark.parametrize("problem", TENSORS)
def test_tensors_that_do_not_fit(tmp_path: Path, model: Path, architecture: Architecture, problem: str) -> None:
    case, tensors = LoraCase(), dict[str, Any]()
    shapes = {Q: (128, 32), LAYER: (32, 48)}
    for module, (outputs, inputs) in shapes.items():
        tensors[key(module, "A")] = np.ones((4, inputs), np.float32)
        tensors[key(module, "B")] = np.ones((outputs, 4), np.float32)
    assert architecture.tensors[f"{Q}.weight"] == (128, 32)
    kind, change = TENSORS[problem]
    change(tensors)
    with pytest.raises(kind) as error:
        opened(write_adapter(tmp_path / "style", case.content(list(shapes)), tensors), architecture)
    assert problem in error.value.problem
    assert error.value.remedy


def test_other_types(path: Path, architecture: Architecture) -> None:
    content = (path / "adapter_model.safetensors").read_bytes()
    (path / "adapter_model.safetensors").write_bytes(content.replace(b'"F32"', b'"I32"'))
    with pytest.raises(UnsupportedError, match="is I32, not BF16, F16 or F32"):
        opened(path, architecture)


def test_files_that_are_not_there(tmp_path: Path, path: Path, architecture: Architecture) -> None:
    with pytest.raises(CheckpointError, match="is no directory"):
        opened(tmp_path / "nowhere", architecture)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(UnsupportedError, match=r"adapter_model\.bin") as error:
        opened(path, architecture)
    assert "safe_serialization=True" in error.value.remedy
    (path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        opened(path, architecture)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_types_and_bytes(tmp_path: Path, model: Path, architecture: Architecture, dtype: str) -> None:
    adapter = opened(LoraCase(dtype=dtype).write(tmp_path / "a", model), architecture)
    weights = sum(4 * sum(architecture.tensors[name]) for name in adapter.matrices)
    assert adapter.nbytes == weights * (4 if dtype == "F32" else 2)
    assert {one.a_dtype for one in adapter.matrices.values()} == {dtype}


def test_the_digest_is_of_what_is_computed(tmp_path: Path, model: Path, architecture: Architecture) -> None:
    def digest(name: str, case: LoraCase, seed: int = 0) -> str:
        return opened(case.write(tmp_path / name, model, seed), architecture).digest

    first = digest("a", LoraCase())
    assert digest("b", LoraCase(config={"lora_dropout": 0.3})) == first
    assert digest("c", LoraCase(), seed=1) != first
    edit(tmp_path / "b", lora_alpha=13)
    assert opened(tmp_path / "b", architecture).digest != first


def require_told(error: PenstockError) -> None:
    assert "\n" not in error.problem
    assert error.remedy


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(changes=st.dictionaries(st.sampled_from([*CONFIG, "r", "lora_alpha", "rank_pattern", "alpha_pattern"]), VALUES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_config_is_read_or_refused(changes: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        try:
            config = parse_config(CONFIG | {"r": 4, "lora_alpha": 8} | changes, "here")
            assert config.rank_of(Q) > 0
            assert math.isfinite(config.scale_of(Q))
        except PenstockError as error:
            require_told(error)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_bytes_are_read_or_refused(
    data: st.DataObject, architecture: Architecture, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = LoraCase(parts=("q_proj",)).write(tmp_path_factory.mktemp("any") / "a", model)
    file = path / data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        try:
            opened(path, architecture)
        except PenstockError as error:
            require_told(error)


def test_more_than_there_is_room_for(path: Path, architecture: Architecture) -> None:
    nbytes = opened(path, architecture).nbytes
    open_adapter("style", path, architecture, nbytes)
    with pytest.raises(MemoryCeilingError, match="more than there is"):
        open_adapter("style", path, architecture, nbytes - 1)


def test_names_that_no_disk_has(architecture: Architecture) -> None:
    for name in ("x" * 5000, "~nobody-of-this-name/x"):
        with pytest.raises(CheckpointError, match="is no directory"):
            open_adapters([f"a={name}"], architecture)


class TestNames:
    def test_a_directory_gives_its_own(self, path: Path) -> None:
        assert adapter_places([str(path), f"other={path}"]) == {"style": path, "other": path}
        assert adapter_places([f"{path}/"]) == {"style": path}

    def test_a_directory_with_an_equals_sign(self, tmp_path: Path) -> None:
        (tmp_path / "a=b").mkdir()
        assert adapter_places([str(tmp_path / "a=b")]) == {"a=b": tmp_path / "a=b"}

    @pytest.mark.parametrize("given", ["=dir", "a=", "a=\0", "a\nb=dir", "/", f"{'x' * 201}=dir"])
    def test_names_that_cannot_be(self, given: str) -> None:
        with pytest.raises(UsageError, match="no name that can be used"):
            adapter_places([given])

    def test_names_that_are_there_twice(self) -> None:
        with pytest.raises(UsageError, match="Two adapters are called 'a'"):
            adapter_places(["a=x", "a=y"])

    def test_the_name_of_the_model(self) -> None:
        with pytest.raises(UsageError, match="is called 'demo', as the model is"):
            check_names(["demo=x"], "demo")
