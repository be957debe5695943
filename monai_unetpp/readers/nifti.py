# SPDX-License-Identifier: Apache-2.0
"""NIfTI: the header is proven before a voxel is unpacked, and the whole file is unpacked once.

What nibabel would set right by a guess is refused: what kind of file it is, its codes, its spacing. A volume
lies where its sform puts it, else its qform, as the standard says; MONAI's reader believes the one that
agrees with ``pixdim`` to the fifth digit more. Metres and micrometres become millimetres.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_unetpp.readers.checks import Geometry, Volume, check_claim, check_fits, voxels_of

__all__ = ["read", "read_geometry"]

HEADER_BYTES = {348: (nib.Nifti1Header, 352), 540: (nib.Nifti2Header, 544)}  # with the mark of extensions
MM_PER_XYZT_CODE = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # not stated, metre, millimetre, micrometre
UNIT_NAMES = {1: "metres", 3: "micrometres"}
AT_ONCE = 2**24  # bytes that are unpacked at once, or voxels that are scaled


@dataclass(frozen=True)
class _NiftiHeader:
    """What the header of a file says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]
    warnings: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all voxels."""
        return voxels_of(self.shape) * self.dtype.itemsize


def read_geometry(path: Path) -> Geometry:
    """Return size and spacing; of a packed file no more than the header is unpacked.

    Raises:
        ValueError: if the header is damaged, or claims more than the file can hold.
    """
    header = _parse(path, _first_bytes(path))
    spacing = np.linalg.norm(header.affine[:3, :3], axis=0)
    return Geometry(header.shape[:3], tuple(spacing[: len(header.shape)].tolist()))


def read(path: Path) -> Volume:
    """Read a volume; see :func:`read_geometry` for what is refused.

    Raises:
        ValueError: if the file is damaged, truncated, larger than memory, or its check sum is wrong.
    """
    packed = _is_packed(path)
    with path.open("rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            head = file.read(544)
            header = _parse(path, head)
            check_fits(path, voxels_of(header.shape))
            content = _voxels(file, head, header)
            while packed and file.read(AT_ONCE):
                pass  # to the check sum
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or damaged: {error}.") from error
    array = np.ndarray(header.shape, header.dtype, content, order="F")
    if header.slope != 1 or header.intercept != 0:
        array = _scaled(array, header.slope, header.intercept)
    return _volume(path, array, header)


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _first_bytes(path: Path) -> bytes:
    """Return the header; of a packed file no more than that is unpacked."""
    with path.open("rb") as file:
        take = _Unpacker(file).take if _is_packed(path) else file.read
        try:
            head = take(352)
            return head + take(540 - 352) if _header_size(head) == 540 else head
        except zlib.error as error:
            raise ValueError(f"{path} is truncated or damaged: {error}.") from error


class _Unpacker:
    """Unpacks as many bytes as are asked for, where a reader of gzip unpacks a buffer of them."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.inflate = file, zlib.decompressobj(wbits=31)

    def take(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end of the file."""
        found = b""
        while len(found) < count and not self.inflate.eof:
            chunk = self.inflate.unconsumed_tail or self.file.read(4096)
            more = self.inflate.decompress(chunk, count - len(found))
            if not chunk and not more:
                break
            found += more
        return found


def _parse(path: Path, head: bytes) -> _NiftiHeader:
    """Prove a header."""
    size = _header_size(head)
    if size is None or len(head) < size:
        raise ValueError(f"{path} is no NIfTI file, or its header is damaged.")
    kind, first_voxel = HEADER_BYTES[size]
    raw: Any = kind(head[:size], check=False)
    _check_stated(path, raw, first_voxel)
    try:
        header: Any = kind(head[:size])
        shape = tuple(int(n) for n in header.get_data_shape())
        slope, intercept = header.get_slope_inter()
        dtype = header.get_data_dtype()
        affine = np.array(header.get_best_affine(), dtype=np.float64)
    except Exception as error:  # of its own kinds
        raise ValueError(f"{path} is damaged: {error}.") from error
    if min(shape, default=0) < 1:
        raise ValueError(f"{path} must have one voxel or more along each axis, got {list(shape)}.")
    if dtype.kind not in "iuf":
        raise ValueError(f"{path} must have one real number per voxel, got {dtype}.")
    affine[:3] *= MM_PER_XYZT_CODE[int(raw["xyzt_units"]) & 7]
    found = _NiftiHeader(
        shape=shape,
        dtype=dtype,
        offset=int(raw["vox_offset"]),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        affine=affine,
        warnings=tuple(_warnings(path, raw, affine)),
    )
    check_claim(path, found.offset + found.bytes, path.stat().st_size, _is_packed(path))
    return found


def _header_size(head: bytes) -> int | None:
    """Return the number of bytes that a header says it has, ``None`` if it is none."""
    return next(
        (n for n in HEADER_BYTES if head[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None
    )


def _check_stated(path: Path, raw: Any, first_voxel: int) -> None:
    """Raise a ValueError for what nibabel would set right by a guess."""
    if not bytes(raw["magic"]).startswith((b"n+1", b"n+2")):
        raise ValueError(f"{path} is no NIfTI file in one piece, or its header is damaged.")
    for name in ("sform_code", "qform_code"):
        if not 0 <= raw[name] <= 5:
            raise ValueError(f"{path} is damaged: its {name} must be 0 to 5, got {int(raw[name])}.")
    stated = raw["pixdim"][1 : 1 + min(max(int(raw["dim"][0]), 0), 3)]
    if raw["sform_code"] == 0 and not (stated > 0).all():
        raise ValueError(f"{path} is damaged: its pixdim must be above 0, got {stated.tolist()}.")
    if int(raw["xyzt_units"]) & 7 not in MM_PER_XYZT_CODE:
        raise ValueError(
            f"{path} must be in metres, mm or micrometres, got the code {int(raw['xyzt_units'])}."
        )
    offset = float(raw["vox_offset"])
    if not (first_voxel <= offset < 2**40 and offset == int(offset)):
        raise ValueError(f"{path} is damaged: its vox_offset must be {first_voxel} or more, got {offset:g}.")


def _warnings(path: Path, raw: Any, affine: NDArray[np.float64]) -> list[str]:
    """What is odd about a header that can be used."""
    found, unit = [], int(raw["xyzt_units"]) & 7
    if unit in UNIT_NAMES:
        found.append(f"{path} is in {UNIT_NAMES[unit]}, and is taken as {MM_PER_XYZT_CODE[unit]:g} mm each.")
    if raw["sform_code"] == 0 and raw["qform_code"] == 0:
        found.append(f"{path} does not say where it lies (no affine): its axes are taken for RAS.")
    stated = np.abs(raw["pixdim"][1:4]) * MM_PER_XYZT_CODE[unit]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if raw["sform_code"] > 0 and not np.allclose(spacing, stated, rtol=0.01, atol=1e-3):
        found.append(
            f"{path} contradicts itself: voxels of {' x '.join(f'{s:g}' for s in spacing)} mm by its sform, "
            f"which is taken, and of {' x '.join(f'{s:g}' for s in stated)} mm by its pixdim."
        )
    return found


def _voxels(file: Any, head: bytes, header: _NiftiHeader) -> bytearray:
    """Read the bytes of the voxels; ``head`` was read before."""
    skip = header.offset - len(head)
    while skip > 0 and (passed := len(file.read(min(skip, AT_ONCE)))):
        skip -= passed
    content, at = bytearray(header.bytes), 0
    chunk = head[header.offset :][: header.bytes]
    while at < header.bytes and (chunk := chunk or file.read(min(header.bytes - at, AT_ONCE))):
        content[at : at + len(chunk)] = chunk
        at, chunk = at + len(chunk), b""
    if at < header.bytes:
        raise EOFError(f"its header claims {header.bytes:,} bytes of voxels, it holds {at:,}")
    return content


def _scaled(array: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    """Apply a slope and an intercept, computed in float64, a part at a time."""
    found = np.empty(array.shape, np.float32, order="F")
    flat, source = found.reshape(-1, order="F"), array.reshape(-1, order="F")
    for at in range(0, len(flat), AT_ONCE):
        flat[at : at + AT_ONCE] = source[at : at + AT_ONCE] * np.float64(slope) + intercept
    return found


def _volume(path: Path, array: NDArray[Any], header: _NiftiHeader) -> Volume:
    """Leave out axes of length 1 beyond the third; the one that is left holds channels."""
    shape = [*array.shape[:3], *(n for n in array.shape[3:] if n > 1)]
    if len(shape) > 4:
        raise ValueError(f"{path} must have three axes, and one of channels at most, got shape {shape}.")
    return Volume(array.reshape(shape, order="F"), header.affine, len(shape) == 4, header.warnings)
