# SPDX-License-Identifier: Apache-2.0
"""Where bundles lie: the files of a bundle, and the bundles that come with this package."""

from __future__ import annotations

import shutil
from pathlib import Path

from monai_unetpp.files import PathLike, atomic_write, refuse_existing

__all__ = ["PARTS", "config_files", "copy_bundle", "find_bundle"]

PARTS = ("*.json", "*.conf", "*.md", "*.txt", "LICENSE", "weights/*")  # files that a bundle ships


def config_files(bundle: PathLike, *names: str) -> list[str]:
    """Return the paths of a bundle's JSONs, in its folder or in ``configs`` inside of it.

    Args:
        bundle: Folder of the bundle.
        names: Names of the JSONs, without suffix.

    Raises:
        FileNotFoundError: if one of them does not exist.
    """
    root = Path(bundle)
    folder = root / "configs" if (root / "configs").is_dir() else root
    paths = [folder / f"{name}.json" for name in names]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"bundle must be the folder of a bundle, with {path.name}: no {path}.")
    return [str(path) for path in paths]


def find_bundle(bundle: PathLike) -> Path:
    """Return the folder of a bundle that is given by its folder or, without a clone, by its name.

    A folder of that name comes first, then ``bundles/NAME``, where :func:`copy_bundle` writes it, then the
    bundle that comes with this package.

    Args:
        bundle: Folder or name.

    Raises:
        FileNotFoundError: if there is no such bundle; the message lists the names.
    """
    given = Path(bundle)
    places = [given]
    if given == Path(given.name):
        places += [Path("bundles") / given, _shipped() / given]
    for place in places:
        if any((place / part).is_file() for part in ("inference.json", "configs/inference.json")):
            return place
    names = ", ".join(sorted(path.parent.name for path in _shipped().glob("*/train.json")))
    raise FileNotFoundError(
        f"bundle must be the folder of a bundle, with inference.json, or one of {names}: no {given}."
    )


def copy_bundle(name: str, out: PathLike = "bundles", overwrite: bool = False) -> Path:
    """Write a bundle that comes with this package into ``out/name``, where its commands expect it.

    Args:
        name: Name of the bundle, ``"hippocampus"``, ``"liver"`` or ``"lung_nodule"``.
        out: Folder of bundles; its parent is where the commands of the documentation are run. The bundle's
            ``bundle_root`` names the folder ``out/name`` as it is given here.
        overwrite: Whether the bundle's own files may be replaced; results of a training are kept.

    Raises:
        FileExistsError: if the folder exists and ``overwrite`` is false.
        ValueError: if there is no such bundle.
    """
    shipped = _shipped()
    names = sorted(path.parent.name for path in shipped.glob("*/train.json"))
    if name not in names:
        raise ValueError(f"bundle must be one of {', '.join(names)}, got {name}.")
    target = Path(out) / name
    if not overwrite:
        refuse_existing(target)
    for pattern in PARTS:
        for path in (shipped / name).glob(pattern):
            with atomic_write(target / path.relative_to(shipped / name)) as part:
                shutil.copyfile(path, part)
                _set_root(part, target, f"bundles/{name}")
    return target


def _set_root(path: Path, target: Path, root: str) -> None:
    """Let a JSON of a bundle name the folder that it is written to as ``bundle_root``."""
    folder = target.as_posix()
    if path.suffix == ".json" and folder != root and not set('#@%$"\\') & set(folder):  # not MONAI's language
        text, line = path.read_text(encoding="utf-8"), '    "bundle_root": "{}",'
        path.write_text(text.replace(line.format(root), line.format(folder)), encoding="utf-8")


def _shipped() -> Path:
    """Return the folder of the bundles that come with this package, installed or in a clone."""
    package = Path(__file__).parents[1]
    return next(path for path in (package / "bundles", package.parent / "bundles") if path.is_dir())
