# SPDX-License-Identifier: Apache-2.0
"""What made a mask: written beside it and into its header, and compared before a scan is skipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib

from monai_unetpp._version import __version__
from monai_unetpp.bundle import Chosen
from monai_unetpp.bundle.settings import PATHS
from monai_unetpp.files import atomic_write
from monai_unetpp.weights import plain, sha256

__all__ = [
    "check_provenance",
    "describe",
    "describe_mask",
    "is_made_by",
    "provenance",
    "side_file",
    "write_provenance",
]

SHOWN = ("pixdim", "roi_size", "hu_range", "largest_component")  # keys that are written by name
# keys that do not change a mask, or are recorded by name
LEFT_OUT = {
    *(*PATHS, *SHOWN, "device", "amp", "amp_kwargs", "level", "runtime", "threshold", "overlays", "labels"),
    "sheet_window",
    *("override_record", "_meta_", "_desc_", "imports", "initialize", "run", "evaluator", "handlers"),
}


def provenance(chosen: Chosen, level: str, precision: str) -> dict[str, Any]:
    """Return what makes the masks of a run, as plain JSON.

    Args:
        chosen: Configuration and weights.
        level: Level that is computed, such as ``"L3"``.
        precision: Type of the numbers in the network, such as ``"bfloat16"``.
    """
    parser, record = chosen.parser, chosen.record
    config = {key: value for key, value in parser.get().items() if key not in LEFT_OUT}
    found = {
        "monai_unetpp": __version__,
        "weights": sha256(chosen.weights),
        "weights_file": chosen.weights.name,
        "level": level,
        "precision": precision,
        "overlays": list(chosen.overlays),
        "labels": [] if record is None else record.labels,
        **{key: parser.get_parsed_content(key) for key in SHOWN if key in parser},
        "configuration": _digest(_without_comments(config)),
    }
    return dict(plain(found))


def describe(made_by: Mapping[str, Any], *more: Any) -> str:
    """Return the text for a NIfTI header, which holds 80 bytes; ``more`` is what else makes a result."""
    version, weights = made_by["monai_unetpp"][:14], made_by["weights"][:12]
    kind = f"{made_by['level'][:10]} {made_by['precision'][:8]}"
    digest = _digest([made_by, *more] if more else made_by)[:8]
    return f"monai-unetpp {version} w={weights} {kind} s={digest}"


def side_file(mask: Path) -> Path:
    """Return the path of the JSON beside a mask."""
    return mask.with_name(mask.name.removesuffix(".nii.gz").removesuffix(".png") + ".json")


def write_provenance(mask: Path, made_by: Mapping[str, Any], image: str) -> None:
    """Write what makes a mask beside it, before the mask itself."""
    with atomic_write(side_file(mask)) as part:
        part.write_text(json.dumps({"image": Path(image).name, **made_by}, indent=4) + "\n", encoding="utf-8")


def describe_mask(mask: Path) -> str:
    """Return what the header of a NIfTI mask says of what made it."""
    header: Any = nib.load(mask).header
    return str(header["descrip"].item().decode("latin-1"))


def is_made_by(side: Path, made_by: Mapping[str, Any]) -> bool:
    """Whether the JSON beside a mask is there, and says that it was made by this."""
    try:
        found = json.loads(side.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {**found, "image": None} == {**made_by, "image": None}


def check_provenance(
    result: Path,
    made_by: Mapping[str, Any],
    side: Path | None = None,
    header: Callable[[Path], str] = describe_mask,
    wanted: str = "",
) -> None:
    """Raise a FileExistsError if a result that exists was made by something else, or does not say by what.

    Args:
        result: Path of a mask, or of another file that states what made it.
        made_by: What would make it now.
        side: Path of the JSON beside it; by default that of a mask.
        header: Function that reads the text in its header.
        wanted: Text that its header would have now; by default that of a mask.
    """
    how = "name another output, or pass overwrite=True (--overwrite) to segment it again."
    try:
        found = json.loads((side or side_file(result)).read_text(encoding="utf-8"))
        description = header(result)
    except (OSError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise FileExistsError(f"{result} exists and does not say what made it ({error}): {how}") from error
    differ = [
        f"{key} {found.get(key)!r}, now {value!r}"
        for key, value in made_by.items()
        if found.get(key) != value
    ]
    differ += [f"{key} {found[key]!r}, now none" for key in found if key not in {*made_by, "image"}]
    if not differ and description != (wanted or describe(made_by)):
        differ = [f"the header {description!r}, now {wanted or describe(made_by)!r}"]
    if differ:
        raise FileExistsError(f"{result} exists and was made with {'; '.join(differ)}: {how}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def _without_comments(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_comments(each) for key, each in value.items() if key != "_desc_"}
    return [_without_comments(each) for each in value] if isinstance(value, list) else value
