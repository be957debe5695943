# SPDX-License-Identifier: Apache-2.0
"""Copying the bundles of this package, and packing them in the layout of MONAI's model zoo."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigParser

from monai_unetpp.files import PathLike, atomic_directory, atomic_write, refuse_existing, save_by_memory
from monai_unetpp.levels import read_calibration, write_calibration
from monai_unetpp.network import UNetPlusPlus, prune, unwrap
from monai_unetpp.weights import load_network

__all__ = ["config_files", "copy_bundle", "pack_bundle"]

Json = dict[str, Any]

SELF_CONTAINED = ("train", "inference")
FOR_ALL_LEVELS = ("levels", "early_exit")  # useless for a single level
CARD = "model_card.md"
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


def copy_bundle(name: str, out: PathLike = "bundles", overwrite: bool = False) -> Path:
    """Write a bundle that comes with this package into ``out/name``, where its commands expect it.

    Args:
        name: Name of the bundle, ``"liver"`` or ``"lung_nodule"``.
        out: Folder of bundles; its parent is where the commands of the documentation are run.
        overwrite: Whether the bundle's own files may be replaced; results of a training are kept.

    Raises:
        FileExistsError: if the folder exists and ``overwrite`` is false.
        ValueError: if there is no such bundle.
    """
    package = Path(__file__).parent
    shipped = next(path for path in (package / "bundles", package.parent / "bundles") if path.is_dir())
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
    return target


def pack_bundle(
    bundle: PathLike,
    checkpoint: PathLike,
    out: PathLike,
    level: int | None = None,
    overlays: Sequence[str] = (),
    standalone: bool = False,
    card: PathLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Build the layout of MONAI's model zoo from a bundle and weights, atomically.

    ``out`` gets ``configs/``, ``docs/README.md``, ``docs/data_license.txt``, ``docs/model_card.md``,
    ``models/model.pt``, ``models/model.ts`` with metadata and inference.json in it, ``LICENSE``, and, if the
    package ``safetensors`` is installed, ``models/model.safetensors``. The metadata name the installed
    versions.

    Args:
        bundle: Folder with train.json, inference.json, metadata.json and further JSONs.
        checkpoint: Path of the weights, alone or as ``"model"``; pruned weights make a bundle of their level.
        out: Folder to make; its name is the bundle's.
        level: Level to keep, L^level alone; by default all levels of ``checkpoint``.
        overlays: Names of JSONs of the bundle that are merged over train.json and inference.json, such as
            ``"slices"``.
        standalone: Whether to include the code of this package, so that it need not be installed.
        card: Path of a text on data, split and scores; by default the ``README.md`` beside ``checkpoint``.
        overwrite: Whether ``out``, a packed bundle, may be replaced.

    Raises:
        FileNotFoundError: if a file of the bundle, the checkpoint, or ``card`` does not exist.
        FileExistsError: if ``out`` exists and ``overwrite`` is false, or it is not a packed bundle.
        ValueError: if the weights do not fit the bundle's network, or have no head at ``level``.
    """
    source, out = Path(bundle), Path(out)
    if overwrite and out.exists() and not (out / "configs" / "metadata.json").is_file():
        raise FileExistsError(f"out must be a packed bundle to be replaced, {out} is not.")
    card = _find_card(card, Path(checkpoint))
    configs = _read_configs(source, overlays)
    network = _network(configs["inference"], checkpoint, level)
    for name in SELF_CONTAINED:
        _fit(configs[name], network)
    if not network.deep_supervision:
        configs = {name: config for name, config in configs.items() if name not in FOR_ALL_LEVELS}
    # raises unless the packed config describes the packed weights
    ConfigParser(configs["inference"]).get_parsed_content("network_def").load_state_dict(network.state_dict())
    metadata = _metadata(configs.pop("metadata"), configs["inference"], standalone)
    classes = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    configs["train"]["labels"] = [classes[str(n)] for n in range(len(classes))]
    with atomic_directory(out, overwrite) as part:
        for name, config in {**configs, "metadata": metadata}.items():
            _write_json(part / "configs" / f"{name}.json", config)
        shutil.copy(source / "logging.conf", part / "configs")
        shutil.copy(source / "LICENSE", part)
        _write_docs(source, part, metadata, card, overlays)
        _write_models(part, network, Path(checkpoint))
        _write_json(part / "configs" / "inference.json", _with_options(configs["inference"], network))
        if standalone:
            package = Path(__file__).parent
            shutil.copytree(package, part / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return out


def _read_configs(source: Path, overlays: Sequence[str]) -> dict[str, Json]:
    """Return all JSONs of a bundle by name, overlays merged, with the paths of the model zoo."""
    config_files(source, *SELF_CONTAINED, "metadata", *overlays)
    configs = {
        path.stem: json.loads(path.read_text())
        for path in sorted(source.glob("*.json"))
        if path.stem not in overlays
    }
    for name in SELF_CONTAINED:
        config: Json = ConfigParser.load_config_files(config_files(source, name, *overlays))
        if overlays:
            config["_desc_"] = json.loads((source / f"{name}.json").read_text())["_desc_"]
        configs[name] = config | {"bundle_root": "."}
    configs["train"]["ckpt_dir"] = "$@bundle_root + '/models'"
    configs["inference"].pop("ckpt_dir", None)
    configs["inference"]["ckpt_path"] = "$@bundle_root + '/models/model.pt'"
    return configs


def _network(config: Json, checkpoint: PathLike, level: int | None) -> UNetPlusPlus:
    """Return the bundle's network with the weights, pruned to ``level`` if that is given."""
    network = load_network(ConfigParser(config).get_parsed_content("network_def"), checkpoint)
    network = unwrap(network)
    if not isinstance(network, UNetPlusPlus):
        raise ValueError(f"checkpoint must hold weights, got {checkpoint}.")
    return network if level is None else prune(network, level)


def _fit(config: Json, network: UNetPlusPlus) -> None:
    """Cut the network of a config to the depth of ``network``."""
    config["channels"] = config["channels"][: network.depth + 1]
    definition = config["network_def"]
    for key in ("strides", "kernel_size", "up_channels"):
        if isinstance(definition.get(key), list):
            definition[key] = definition[key][: len(network.arguments[key])]
    if not network.deep_supervision:
        definition["deep_supervision"] = False


def _with_options(config: Json, network: UNetPlusPlus) -> Json:
    """Return the config with the options that MONAI Label shows; the level is the deepest by default."""
    config = json.loads(json.dumps(config))
    options = {"overlap": config["windows"]["overlap"]}
    if network.deep_supervision:
        options["level"] = network.depth
        config["level"] = "@displayable_configs#level"
        config["inferer"]["level"] = "@level"  # MONAI Label loads the network itself
    config["windows"]["overlap"] = "@displayable_configs#overlap"
    return {**config, "displayable_configs": options}


def _metadata(metadata: Json, config: Json, standalone: bool) -> Json:
    """Return the metadata with the installed versions, and the network's inputs and outputs."""
    required = [n for n in metadata["required_packages_version"] if not (standalone and n == "monai-unetpp")]
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    size = config["roi_size"][: config["spatial_dims"]]
    image |= {"num_channels": config["in_channels"], "spatial_shape": size}
    names = list(pred["channel_def"].items())[: config["out_channels"]]
    pred |= {"num_channels": config["out_channels"], "spatial_shape": size, "channel_def": dict(names)}
    low, high = config["hu_range"]
    window = re.sub(r"-?\d+\.\.-?\d+ HU", f"{low}..{high} HU", metadata["image_classes"])
    return {
        **metadata,
        "monai_version": _installed("monai"),
        "pytorch_version": _installed("torch"),
        "numpy_version": _installed("numpy"),
        "required_packages_version": {name: _installed(name) for name in required},
        "image_classes": window,
    }


def _installed(package: str) -> str:
    return version(package).partition("+")[0]  # 2.13.0+cpu is not on a package index


def _find_card(card: PathLike | None, checkpoint: Path) -> Path | None:
    """Return the path of the model card, if there is one."""
    if card is None:
        beside = checkpoint.parent / "README.md"
        return beside if beside.is_file() else None
    if not Path(card).is_file():
        raise FileNotFoundError(f"card must be a text file, no {card}.")
    return Path(card)


def _write_docs(source: Path, part: Path, metadata: Json, card: Path | None, overlays: Sequence[str]) -> None:
    """Write README, data licence and model card, with the paths of the packed layout."""
    docs = part / "docs"
    docs.mkdir()
    shutil.copy(source / "data_license.txt", docs)
    readme = _relocated((source / "README.md").read_text(), source.name)
    (docs / "README.md").write_text(_without_overlays(readme, overlays))
    text = _relocated(card.read_text(), source.name) if card else _card_without_scores(metadata)
    (docs / CARD).write_text(text)


def _card_without_scores(metadata: Json) -> str:
    said = {key: metadata[key] for key in ("name", "description", "data_source", "intended_use")}
    lines = [f"| {key.replace('_', ' ')} | {value} |" for key, value in said.items()]
    stated = "Data, split and scores of these weights were not stated by whoever packed them."
    return "\n".join(["# Model card", "", "| | |", "| --- | --- |", *lines, "", stated, ""])


def _relocated(text: str, name: str) -> str:
    """Return a text of a flat bundle for a packed one, whose commands run in the bundle's folder."""
    text = text.replace("the root of the repository", "this bundle's folder")
    text = re.sub(rf"bundles/{name}/(\w+\.json)", r"configs/\1", text)
    text = re.sub(rf"bundles/{name}/weights/", "models/", text)
    text = re.sub(rf"bundles/{name}/", "", text)
    text = re.sub(rf"bundles/{name}\b", ".", text)
    text = text.replace("(weights/README.md)", f"({CARD})")

    def link(found: re.Match[str]) -> str:
        kept = found[2].startswith("http") or found[2] in ("data_license.txt", CARD)
        return found[0] if kept else found[1]

    return re.sub(r"\[([^\]]*)\]\(([^)]+)\)", link, text)


def _without_overlays(readme: str, overlays: Sequence[str]) -> str:
    """Return a text whose commands do not name the overlays, which are merged in a packed bundle."""
    if not overlays:
        return readme
    for name in overlays:
        readme = readme.replace(f",'configs/{name}.json'", "").replace(f" --overlay {name}", "")
    readme = re.sub(r"\"\['([^',]+)'\]\"", r"\1", readme)  # a list of one
    title, _, rest = readme.partition("\n")
    names = " and ".join(f"`{name}.json`" for name in overlays)
    return f"{title}\n\n**In this folder {names} is in `train.json` and `inference.json` already.**\n{rest}"


def _write_models(part: Path, network: UNetPlusPlus, checkpoint: Path) -> None:
    """Write the weights as tensors, as TorchScript with the configs, and as safetensors if installed."""
    weights = part / "models" / "model.pt"
    with atomic_write(weights) as file:
        save_by_memory(file, partial(torch.save, network.state_dict()))
    if network.deep_supervision and checkpoint.with_suffix(".json").is_file():
        found = read_calibration(checkpoint)
        write_calibration(weights, found.level, found.exit)
    if find_spec("safetensors"):
        from safetensors.torch import save

        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        weights.with_suffix(".safetensors").write_bytes(save(state))
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(weights.with_suffix(".ts")),
        ckpt_file=str(weights),
        meta_file=str(part / "configs" / "metadata.json"),
        config_file=str(part / "configs" / "inference.json"),
        bundle_root=str(part),
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4) + "\n")
