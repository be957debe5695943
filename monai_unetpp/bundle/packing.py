# SPDX-License-Identifier: Apache-2.0
"""Packing a bundle in the layout of MONAI's model zoo."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigParser

from monai_unetpp.bundle.documents import find_card, write_docs
from monai_unetpp.bundle.places import config_files
from monai_unetpp.bundle.settings import apply_record
from monai_unetpp.files import PathLike, atomic_directory, atomic_write, save_by_memory
from monai_unetpp.network import UNetPlusPlus, prune, unwrap
from monai_unetpp.weights import Record, load_network, plain, read_record, without_levels, write_record

__all__ = ["pack_bundle"]

Json = dict[str, Any]

SELF_CONTAINED = ("train", "inference")
FOR_ALL_LEVELS = ("levels", "early_exit")  # useless for a single level


def pack_bundle(
    bundle: PathLike,
    checkpoint: PathLike,
    out: PathLike,
    level: int | None = None,
    overlays: Sequence[str] = (),
    standalone: bool = True,
    card: PathLike | None = None,
    overwrite: bool = False,
    override_record: bool = False,
) -> Path:
    """Build the layout of MONAI's model zoo from a bundle and weights, atomically.

    ``out`` gets ``configs/``, ``docs/README.md``, ``docs/data_license.txt``, ``docs/model_card.md``,
    ``models/model.pt``, ``models/model.ts`` with metadata and inference.json in it, ``LICENSE``, and, if the
    package ``safetensors`` is installed, ``models/model.safetensors``. The metadata name the installed
    versions.

    Args:
        bundle: Folder with train.json, inference.json, metadata.json and further JSONs.
        checkpoint: Path of weights or of a training checkpoint; pruned weights make a bundle of their level.
        out: Folder to make; its name is the bundle's.
        level: Level to keep, L^level alone; by default all levels of ``checkpoint``.
        overlays: Names of JSONs of the bundle that are merged over train.json and inference.json, such as
            ``"slices"``.
        standalone: Whether to include the code of this package, so that it need not be installed: the zoo
            installs only what is on PyPI, where this package is not yet.
        card: Path of a text on data, split and scores; by default the ``README.md`` beside ``checkpoint``.
        overwrite: Whether ``out``, a packed bundle, may be replaced.
        override_record: Whether ``overlays`` and the names of the classes in metadata.json win where the
            record of the weights disagrees.

    Raises:
        FileNotFoundError: if a file of the bundle, the checkpoint, or ``card`` does not exist.
        FileExistsError: if ``out`` exists and ``overwrite`` is false, or it is not a packed bundle.
        ValueError: if the weights do not fit the bundle's network, have no head at ``level``, or their record
            disagrees.
    """
    source, out = Path(bundle), Path(out)
    if overwrite and out.exists() and not (out / "configs" / "metadata.json").is_file():
        raise FileExistsError(f"out must be a packed bundle to be replaced, {out} is not.")
    card = find_card(card, Path(checkpoint))
    configs, network, record, overlays = gather(source, checkpoint, level, overlays, override_record)
    without = [] if network.deep_supervision else list(FOR_ALL_LEVELS)
    without += _of_other_dimensions(configs)
    configs = {name: config for name, config in configs.items() if name not in without}
    # raises unless the packed config describes the packed weights
    ConfigParser(configs["inference"]).get_parsed_content("network_def").load_state_dict(network.state_dict())
    metadata = _metadata(configs.pop("metadata"), configs["inference"], standalone)
    names = class_names(metadata)
    if configs["inference"].get("regions") is not None:
        names = ["background", *names]
    configs["train"]["labels"] = {
        "_desc_": "of the data set in dataset_dir; a host that trains on cases of its own has none",
        "_target_": "monai_unetpp.data.read_labels",
        "dataset_dir": "@dataset_dir",
        "otherwise": names,
    }
    with atomic_directory(out, overwrite) as part:
        for name, config in {**configs, "metadata": metadata}.items():
            _write_json(part / "configs" / f"{name}.json", config)
        shutil.copy(source / "logging.conf", part / "configs")
        shutil.copy(source / "LICENSE", part)
        write_docs(source, part, metadata, card, overlays, without)
        _write_models(part, network, record)
        _write_json(part / "configs" / "inference.json", _with_options(configs["inference"], network))
        if standalone:
            package = Path(__file__).parents[1]
            without_bundles = shutil.ignore_patterns("__pycache__", "bundles")
            shutil.copytree(package, part / package.name, ignore=without_bundles)
    return out


def gather(
    source: Path,
    checkpoint: PathLike,
    level: int | None = None,
    overlays: Sequence[str] = (),
    override_record: bool = False,
) -> tuple[dict[str, Json], UNetPlusPlus, Record | None, list[str]]:
    """Return the JSONs of a bundle by name, its network with weights, their record, and all overlays.

    The arguments are those of :func:`pack_bundle`; the JSONs say what the record says, and train.json and
    inference.json describe the network that is returned.
    """
    record = read_record(checkpoint)
    recorded = [] if record is None else [name for name in record.overlays if _merges(source, name)]
    configs = _follow(record, source, recorded, overlays, checkpoint, override_record)
    network = _network(configs["inference"], checkpoint, level)
    for name in SELF_CONTAINED:
        _fit(configs[name], network)
    return configs, network, record, list(dict.fromkeys([*recorded, *overlays]))


def class_names(metadata: Mapping[str, Any]) -> list[str]:
    """Return the names of a network's channels."""
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return [channels[str(n)] for n in range(len(channels))]


def _read_configs(source: Path, overlays: Sequence[str]) -> dict[str, Json]:
    """Return all JSONs of a bundle by name, overlays merged, with the paths of the model zoo."""
    config_files(source, *SELF_CONTAINED, "metadata", *overlays)
    configs = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(source.glob("*.json"))
        if path.stem not in overlays
    }
    for name in SELF_CONTAINED:
        config: Json = ConfigParser.load_config_files(config_files(source, name, *overlays))
        if overlays:
            config["_desc_"] = json.loads((source / f"{name}.json").read_text(encoding="utf-8"))["_desc_"]
        configs[name] = config | {"bundle_root": "."}
    configs["train"]["ckpt_dir"] = "$@bundle_root + '/models' + @fold_dir"
    configs["train"]["previous_training"] = "keep"  # the packed weights, in the folder that a host trains in
    for key in ("ckpt_dir", "log_dir"):  # of an overlay that is merged over train.json as well
        configs["inference"].pop(key, None)
    configs["inference"]["ckpt_path"] = "$@bundle_root + '/models/model.pt'"
    return configs


def _follow(
    record: Record | None,
    source: Path,
    recorded: Sequence[str],
    overlays: Sequence[str],
    checkpoint: PathLike,
    override: bool,
) -> dict[str, Json]:
    """Return all JSONs of a bundle by name, with what the record of the weights says."""
    configs = _read_configs(source, list(dict.fromkeys([*recorded, *overlays])))
    if record is None:
        return configs
    explicit = {k for n in overlays for k in ConfigParser.load_config_file(config_files(source, n)[0])}
    for name in SELF_CONTAINED:
        parser = ConfigParser(configs[name])
        apply_record(parser, record, explicit, checkpoint, override)
        configs[name] = {key: value for key, value in parser.get().items() if key != "_meta_"}
    if not override:
        _check_labels(source, record, configs)
    return configs


def _of_other_dimensions(configs: Mapping[str, Json]) -> list[str]:
    """Return the names of recipes whose windows are flat where the packed ones are not, or the reverse."""
    flat = configs["train"]["spatial_dims"] == 2
    windows = {name: config["roi_size"] for name, config in configs.items() if "roi_size" in config}
    return [name for name, size in windows.items() if (size[-1] == 1) != flat]


def _merges(source: Path, name: str) -> bool:
    """Whether an overlay of a training belongs over inference.json as well."""
    try:
        ConfigParser.load_config_files(config_files(source, "inference", name))
    except (FileNotFoundError, KeyError, ValueError):
        return False
    return True


def _check_labels(source: Path, record: Record, configs: Mapping[str, Json]) -> None:
    """Raise if metadata.json names other classes than those that the weights were trained with."""
    formats = configs["metadata"]["network_data_format"]
    named = list(formats["outputs"]["pred"]["channel_def"].values())[: configs["inference"]["out_channels"]]
    labels = record.labels[record.regions is not None :]  # the background is no region
    if labels and named != labels:
        path = config_files(source, "metadata")[0]
        wanted = json.dumps({str(n): name for n, name in enumerate(labels)})
        raise ValueError(
            f"{path} must name the classes of the weights, {', '.join(labels)}, "
            f"got {', '.join(named)}: give channel_def {wanted} there, and "
            "have name, task, description, label_classes, pred_classes and data_source say the same; "
            "override_record=True (--override-record) packs it as it is."
        )


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
    if "last_channels" in definition:
        definition["last_channels"] = network.arguments["last_channels"]
    if not network.deep_supervision:
        definition["deep_supervision"] = False


def _with_options(config: Json, network: UNetPlusPlus) -> Json:
    """Return the config with the options that MONAI Label shows; the level is the deepest by default.

    Label loads the network itself, so that the inferer sets the level of its option. ``level`` of the
    configuration comes first, and at the default the network is left at the level of its weights.
    """
    config = json.loads(json.dumps(config))
    options = {"overlap": config["windows"]["overlap"]}
    if network.deep_supervision:
        options["level"] = network.depth
        chosen = "@displayable_configs#level"
        config["inferer"]["level"] = f"$@level or (None if {chosen} == {network.depth} else {chosen})"
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
    window = metadata["image_classes"]
    if config["hu_range"] is not None:
        low, high = config["hu_range"]
        window = re.sub(r"-?\d+\.\.-?\d+ HU", f"{low}..{high} HU", window)
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


def _write_models(part: Path, network: UNetPlusPlus, record: Record | None) -> None:
    """Write the weights as tensors, as TorchScript with the configs, and as safetensors if installed."""
    weights = part / "models" / "model.pt"
    with atomic_write(weights) as file:
        save_by_memory(file, partial(torch.save, network.state_dict()))
    if record is not None:
        record = record if network.deep_supervision else without_levels(record, network.depth)
        write_record(weights, replace(record, network=plain(network.spec.arguments()), files={}))
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
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
