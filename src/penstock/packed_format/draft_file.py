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
from penstock.packed_format.reader import SEAL, SEAL_BYTES, is_packed_file, seal
from penstock.safetensors_header import DType, Header, encode_header, read_header
from penstock.strict_json import open_regular, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from penstock.packed_format.tensor import PackedTensor
    from penstock.safetensors_header import TensorInfo

NAME = "draft.safetensors"
MODEL, HASHES, _ = SERVICE = ("penstock.model", "penstock.hashes", SEAL)
PARTS = ("inward", "outward", "scales")
"""Of a correction, as it has them itself."""
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
        f"{name}.{part}": np.ascontiguousarray(getattr(correction, part))
        for name, correction in corrections.items()
        for part in PARTS
    }
    hashes = b"".join(_hash(array.tobytes()) for array in data.values())
    service = {MODEL: model, HASHES: hashes, SEAL: bytes(SEAL_BYTES)}
    types = {np.dtype(np.int8): DType.I8, np.dtype(np.float32): DType.F32}
    tensors = {name: (types[array.dtype].value, array.shape, array.nbytes) for name, array in data.items()}
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


def find_corrections(
    folder: Path, files: Sequence[Path], tensors: Mapping[str, TensorInfo | PackedTensor]
) -> dict[str, Correction]:
    """Those of the model in `folder`, whose weights are in `files`; none where there are none. Raises as
    `read_corrections`."""
    path = folder / NAME
    model = identity(files) if path.exists() else None
    return {} if model is None else read_corrections(path, model, tensors)


def is_tuned(folder: Path, files: Sequence[Path]) -> bool:
    """Whether such a file for just these weights is in the folder; whether it is sound shows when it is used."""
    path = folder / NAME
    try:
        header = read_header(path)
        with open_regular(path) as file:
            file.seek(header.tensors[MODEL].begin)
            return file.read(header.tensors[MODEL].nbytes) == identity(files)
    except (OSError, KeyError, FormatError):
        return False


def usable_corrections(
    folder: Path, files: Sequence[Path], tensors: Mapping[str, TensorInfo | PackedTensor]
) -> dict[str, Correction]:
    """As `find_corrections`; none, and a warning, where they cannot be used."""
    try:
        return find_corrections(folder, files, tensors)
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
    places = _places(header, tensors)  # so no file of another size is read
    with open_regular(path) as file:
        content = file.read(header.file_size + 1)
    if len(content) != header.file_size:
        _fail(f"{path} changed while it was read")
    _check(header, content, model)
    return {name: Correction(*(_array(info, content) for info in infos)) for name, infos in places.items()}


def _places(header: Header, tensors: Mapping[str, TensorInfo | PackedTensor]) -> dict[str, list[TensorInfo]]:
    """The tensors of each correction, in the order of PARTS. Raises FormatError where they are not of this model."""
    path, names = header.path, list(header.tensors)
    if names[-len(SERVICE) :] != list(SERVICE):
        _fail(f"{path} does not end with {', '.join(SERVICE)}")
    matrices = dict.fromkeys(name.rsplit(".", 1)[0] for name in names[: -len(SERVICE)])
    sizes = {MODEL: 8, HASHES: 8 * (len(names) - len(SERVICE)), SEAL: SEAL_BYTES}
    wrong = [name for name, nbytes in sizes.items() if header.tensors[name].nbytes != nbytes]
    if wrong or len(names) != len(PARTS) * len(matrices) + len(SERVICE):
        _fail(f"{path}: {wrong[0] if wrong else 'the list of tensors'} is not as large as for {len(matrices)} matrices")
    return {name: _parts(name, header, tensors) for name in matrices}


def _parts(name: str, header: Header, tensors: Mapping[str, TensorInfo | PackedTensor]) -> list[TensorInfo]:
    path = header.path
    if name not in tensors or len(tensors[name].shape) != 2:
        _fail(f"{path} corrects {shown(name)}, which is no matrix of this model")
    rows, cols = tensors[name].shape
    infos = [header.tensors.get(f"{name}.{part}") for part in PARTS]
    rank = infos[0].shape[0] if infos[0] is not None and infos[0].shape else 0
    expected = [(DType.I8, (rank, cols)), (DType.I8, (rank, rows)), (DType.F32, (rank,))]
    found = [info for info in infos if info is not None]
    if not 0 < rank <= MOST_RANK or [(info.dtype, info.shape) for info in found] != expected:
        _fail(f"{path}: the tensors of {shown(name)} are not those of a correction of {rows} x {cols} weights")
    return found


def _check(header: Header, content: bytes, model: bytes) -> None:
    """Raise ChecksumError, FormatError unless all hashes hold and the file is of these weights."""
    path = header.path
    own, hashes, sealed = (content[header.tensors[name].begin : header.tensors[name].end] for name in SERVICE)
    if sealed != seal(content[: header.data_begin], own, hashes):
        _fail_damaged(f"{path}: its header or last tensors")
    for index, info in enumerate([*header.tensors.values()][: -len(SERVICE)]):
        if hashes[8 * index : 8 * index + 8] != _hash(memoryview(content)[info.begin : info.end]):
            _fail_damaged(f"{path}: tensor {shown(info.name)}")
    if own != model:
        _fail(f"{path} was made for other weights than those beside it")


def _array(info: TensorInfo, content: bytes) -> npt.NDArray[Any]:
    """Raises FormatError for values that are not finite."""
    dtype = np.int8 if info.dtype is DType.I8 else np.float32
    data = np.frombuffer(content, dtype, info.n_elements, info.begin).reshape(info.shape)
    if dtype is np.float32 and not np.isfinite(data).all():
        _fail(f"{info.path}: {shown(info.name)} has values that are not finite")
    return data


def _hash(content: bytes | memoryview) -> bytes:
    return xxhash.xxh3_64_intdigest(content).to_bytes(8, "little")


def _fail_damaged(place: str) -> NoReturn:
    raise ChecksumError(f"{place}: the checksum does not match: the file is damaged", TUNE_AGAIN)


def _fail(problem: str) -> NoReturn:
    raise FormatError(problem, TUNE_AGAIN)
