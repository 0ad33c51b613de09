"""`draft.safetensors`: what makes the coarse tier of a packed model guess better (docs/format.md, "Corrections").

Tied to the weights that it was made for; damage is found by checksums when it is opened, and named.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import xxhash

from penstock.compute.corrections import Correction
from penstock.disk.new_files import new_file
from penstock.errors import CheckpointWarning, ChecksumError, FormatError, PenstockError
from penstock.packed_format.reader import SEAL, is_packed_file, seal
from penstock.safetensors_header import DType, Header, encode_header, read_header
from penstock.strict_json import open_regular, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from penstock.packed_format.tensor import PackedTensor
    from penstock.safetensors_header import TensorInfo

NAME = "draft.safetensors"
MODEL, HASHES = "penstock.model", "penstock.hashes"
PARTS = {"inward": DType.I8, "outward": DType.I8, "scales": DType.F32, "gains": DType.F32}
MOST_RANK = 256
TUNE_AGAIN = "Run `penstock tune` again. Until then guesses are made without it; no answer is any different."


def identity(files: Sequence[Path]) -> bytes | None:
    """What a packed model's weights are known by, 8 bytes: a hash of its files' seals, which have hashes of all of
    their bytes under them; None where not all of it is packed."""
    digest = xxhash.xxh3_64()
    for path in sorted(files):
        header = read_header(path)
        if not is_packed_file(header) or SEAL not in header.tensors:
            return None
        with open_regular(path) as file:
            file.seek(header.tensors[SEAL].begin)
            digest.update(file.read(header.tensors[SEAL].nbytes))
    return digest.intdigest().to_bytes(8, "little")


def write_corrections(folder: Path, model: bytes, corrections: Mapping[str, Correction]) -> Path:
    """Write the file, which gets its name when it is whole. Raises OSError."""
    data = {
        f"{name}.{part}": np.ascontiguousarray(array)
        for name, correction in corrections.items()
        for part, array in zip(PARTS, _arrays(correction), strict=True)
    }
    types = {name: PARTS[name.rsplit(".", 1)[1]].value for name in data}
    hashes = b"".join(_hash(array.tobytes()) for array in data.values())
    service = {MODEL: model, HASHES: hashes, SEAL: bytes(64)}
    tensors = {name: (types[name], array.shape, array.nbytes) for name, array in data.items()}
    tensors |= {name: ("U8", (len(content),), len(content)) for name, content in service.items()}
    header = encode_header(tensors)
    service[SEAL] = seal(header, model, hashes)
    path = folder / NAME
    with new_file(path, folder / f"{NAME}.unfinished") as file:
        file.write(header)
        for array in data.values():
            file.write(array.tobytes())
        for content in service.values():
            file.write(content)
    return path


def corrections_beside(
    folder: Path, files: Sequence[Path], tensors: Mapping[str, TensorInfo | PackedTensor]
) -> dict[str, Correction]:
    """Those of the model in `folder`; none where there are none, nor, with a warning, where they cannot be used."""
    path = folder / NAME
    try:
        model = identity(files) if path.exists() else None
        return {} if model is None else read_corrections(path, model, tensors)
    except (PenstockError, OSError) as error:
        warnings.warn(str(error), CheckpointWarning, stacklevel=2)
        return {}


def read_corrections(
    path: Path, model: bytes, tensors: Mapping[str, TensorInfo | PackedTensor]
) -> dict[str, Correction]:
    """All corrections of a file, by matrix, checked. `model`: the identity of the weights; `tensors`: the model's.

    Raises ChecksumError for damage, FormatError for what is no such file, or was made for other weights.
    """
    header = read_header(path)
    with open_regular(path) as file:
        content = file.read(header.file_size + 1)
    if len(content) != header.file_size:
        _fail(f"{path} changed while it was read")
    _check(header, content, model)
    names = dict.fromkeys(name.rsplit(".", 1)[0] for name in header.tensors if name not in (MODEL, HASHES, SEAL))
    return {name: _correction(name, header, content, tensors) for name in names}


def _arrays(correction: Correction) -> tuple[npt.NDArray[Any], ...]:
    """In the order of PARTS."""
    return correction.inward, correction.outward, correction.scales, correction.gains


def _check(header: Header, content: bytes, model: bytes) -> None:
    """Raise ChecksumError, FormatError unless all hashes hold and the file is of these weights."""
    path = header.path
    if tuple(header.tensors)[-3:] != (MODEL, HASHES, SEAL):
        _fail(f"{path} does not end with {MODEL}, {HASHES} and {SEAL}")
    parts = {name: content[tensor.begin : tensor.end] for name, tensor in header.tensors.items()}
    if parts[SEAL] != seal(content[: header.data_begin], parts[MODEL], parts[HASHES]):
        raise ChecksumError(
            f"{path}: its header or last tensors: the checksum does not match: the file is damaged", TUNE_AGAIN
        )
    names = list(header.tensors)[:-3]
    if len(parts[HASHES]) != 8 * len(names):
        _fail(f"{path}: {HASHES} has {len(parts[HASHES])} bytes for {len(names)} tensors")
    for index, name in enumerate(names):
        if parts[HASHES][8 * index : 8 * index + 8] != _hash(parts[name]):
            raise ChecksumError(
                f"{path}: tensor {shown(name)}: the checksum does not match: the file is damaged", TUNE_AGAIN
            )
    if parts[MODEL] != model:
        _fail(f"{path} was made for other weights than those beside it")


def _correction(
    name: str, header: Header, content: bytes, tensors: Mapping[str, TensorInfo | PackedTensor]
) -> Correction:
    path = header.path
    if name not in tensors or len(tensors[name].shape) != 2:
        _fail(f"{path} corrects {shown(name)}, which is no matrix of this model")
    rows, cols = tensors[name].shape
    infos = {part: header.tensors.get(f"{name}.{part}") for part in PARTS}
    rank = infos["scales"].shape[0] if infos["scales"] is not None and len(infos["scales"].shape) == 1 else 0
    shapes = {"inward": (rank, cols), "outward": (rank, rows), "scales": (rank,), "gains": (rank,)}
    arrays: list[npt.NDArray[Any]] = []
    for part, dtype in PARTS.items():
        info = infos[part]
        if info is None or info.dtype is not dtype or info.shape != shapes[part] or not 0 < rank <= MOST_RANK:
            _fail(f"{path}: the tensors of {shown(name)} are not those of a correction of {rows} x {cols} weights")
        data = np.frombuffer(content, np.int8 if dtype is DType.I8 else np.float32, info.n_elements, info.begin)
        if dtype is DType.F32 and not np.isfinite(data).all():
            _fail(f"{path}: {shown(f'{name}.{part}')} has values that are not finite")
        arrays.append(data.reshape(info.shape))
    return Correction(*arrays)


def _hash(content: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(content).to_bytes(8, "little")


def _fail(problem: str) -> NoReturn:
    raise FormatError(problem, TUNE_AGAIN)
