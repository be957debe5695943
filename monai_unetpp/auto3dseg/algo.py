# SPDX-License-Identifier: Apache-2.0
"""The algorithm: a planned bundle for each fold of a data list.

The folder of a fold has ``configs/dataset.json``, which names the files of the list; ``bundle``, planned for
them, with the fold's cases held out; and ``scripts``. Fold 0 plans; the others take its plan.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.apps.auto3dseg import BundleAlgo
from monai.bundle import ConfigParser

from monai_unetpp.extras import require
from monai_unetpp.planning import Source, parse_memory, plan_bundle
from monai_unetpp.weights import read_record

__all__ = ["UnetplusplusAlgo", "split_listed", "templates_folder"]

NAME = "unetplusplus"
CHANNEL = {"ct": "CT"}  # Auto3DSeg's modality -> name of a channel that plan reads as HU
PLANNED = ("hours", "memory", "device", "set", "skip_bad")
# Auto3DSeg's names of parameters of a training -> keys of train.json
PARAMETERS = {
    "num_epochs": "max_epochs",
    "num_epochs_per_validation": "val_interval",
    "num_images_per_batch": "batch_size",
}


def templates_folder() -> Path:
    """Return the folder for ``templates_path_or_url`` of Auto3DSeg's ``AutoRunner``."""
    return Path(__file__).parent / "templates"


def split_listed(
    cases: Sequence[dict[str, str]], held_out: Sequence[str]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Split cases into training cases and those that are listed, as :func:`~monai_unetpp.data.split_cases`.

    Args:
        cases: Cases with an ``"image"``.
        held_out: Paths of the images that are held out.

    Raises:
        ValueError: if a listed image is of no case, or none is left on a side.
    """
    listed = {Path(path) for path in held_out}
    sides = [[case for case in cases if (Path(case["image"]) in listed) is side] for side in (False, True)]
    if len(sides[1]) != len(listed) or not all(sides):
        raise ValueError(
            f"held_out must name images of the {len(cases)} cases, and leave some to train on: of "
            f"{len(listed)} there are {len(sides[1])}."
        )
    return sides[0], sides[1]


class UnetplusplusAlgo(BundleAlgo):
    """UNet++ for Auto3DSeg, with MONAI's interface.

    The input of Auto3DSeg may have a key ``unetplusplus``: ``hours`` (of the training of a fold), ``memory``,
    ``device`` and ``skip_bad`` as those of :func:`~monai_unetpp.planning.plan_bundle`, and ``set``, settings
    that are not chosen but taken.

    Args:
        template_path: Folder of the templates.
    """

    def fill_template_config(self, data_stats_filename: str, algo_path: str, **kwargs: Any) -> dict[str, Any]:
        """Plan the bundle of a fold, or take the plan of fold 0; return the settings by file.

        Args:
            data_stats_filename: Report of Auto3DSeg on the data, which is not used: ``plan`` has its own.
            algo_path: Folder of the fold.
            kwargs: ``fold``, its number; others, of Auto3DSeg, have no effect.

        Raises:
            ValueError: if the input or its data list does not fit.
        """
        require("auto3dseg", "yaml", "matplotlib")
        del data_stats_filename
        folder, fold = Path(algo_path), int(kwargs.get("fold", 0))
        given: dict[str, Any] = ConfigParser.load_config_file(self.data_list_file)
        cases, held_out = _listed(given, fold)
        data = folder / "configs"  # where Auto3DSeg looks for files of the algorithm
        data.mkdir()
        _write(data / "dataset.json", _data_set(given, cases))
        bundle, first = folder / "bundle", folder.parent / f"{self.name}_0" / "bundle"
        if fold and first.is_dir():
            shutil.copytree(first, bundle)
        else:
            _plan(given, data, bundle, len(held_out) / len(cases))
        config = _read(bundle / "train.json")
        config |= {"bundle_root": bundle.as_posix(), "dataset_dir": str(data), "held_out": held_out}
        config["split"] = {
            "_desc_": f"fold {fold} of the data list is held out",
            "_target_": f"{__name__.rpartition('.')[0]}.{split_listed.__name__}",
            "cases": "$@dataset.cases",
            "held_out": "@held_out",
        }
        _write(bundle / "train.json", config)
        for name in ("evaluate", "levels", "findings"):  # an option of the split that was replaced
            path = bundle / f"{name}.json"
            _write(path, {key: value for key, value in _read(path).items() if key != "split#write"})
        plan = _read(bundle / "plan" / "plan.json")
        return {"train.json": {key: choice["value"] for key, choice in plan.items()}}

    def train(
        self, train_params: dict[str, Any] | None = None, device_setting: dict[str, Any] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Train, then score the levels and choose one, each in a process of its own.

        Args:
            train_params: Keys of train.json, or Auto3DSeg's names for some of them -> value.
            device_setting: Auto3DSeg's; of several GPUs the first one trains.

        Raises:
            subprocess.CalledProcessError: if it fails; the reason is on stderr.
        """
        gpus = str((device_setting or {}).get("CUDA_VISIBLE_DEVICES", ""))
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpus.split(",")[0]} if gpus else {})}
        values = {PARAMETERS.get(key, key): value for key, value in (train_params or {}).items()}
        settings = [word for key, value in values.items() for word in (f"--{key}", json.dumps(value))]
        self._run("train", *settings, "--previous_training", "keep", env=environment)
        return self._run("levels", "--overwrite", "True", "--formats", '["pt"]', env=environment)

    def get_score(self, *_: Any, **__: Any) -> float:
        """Return the mean Dice over the held-out cases and the classes, in [0, 1].

        Raises:
            FileNotFoundError: if the fold was not trained.
        """
        weights = self._bundle / "models" / "model.pt"
        record = read_record(weights)
        if record is None or record.level is None:
            raise FileNotFoundError(f"{weights} was not trained and scored to its end.")
        return record.scores["val_mean_dice"]

    @property
    def _bundle(self) -> Path:
        return Path(self.output_path) / "bundle"

    def _run(self, name: str, *words: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "monai_unetpp", name, str(self._bundle)]
        where = ["--dataset_dir", str(self._bundle.with_name("configs"))]
        return subprocess.run([*command, *where, *words], env=dict(env), check=True)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _listed(given: Mapping[str, Any], fold: int) -> tuple[list[dict[str, str]], list[str]]:
    """Return the cases of a data list with absolute paths, and the images of a fold."""
    root, cases, held_out = Path(given["dataroot"]).absolute(), [], []
    for case in ConfigParser.load_config_file(given["datalist"])["training"]:
        for key in ("image", "label"):
            if not isinstance(case.get(key), str):
                raise ValueError(
                    f"datalist {given['datalist']} must name one file as {key} of each case for "
                    f"{NAME}, got {case.get(key)!r}: channels lie beside each other as CASE_0000, CASE_0001."
                )
        found = {key: str(root / case[key]) for key in ("image", "label")}
        cases.append({"scan": Path(case["image"]).as_posix(), **found})
        held_out += [found["image"]] if case.get("fold") == fold else []
    if len({case["scan"] for case in cases}) < len(cases):
        raise ValueError(f"datalist {given['datalist']} must name every image once.")
    if not 0 < len(held_out) < len(cases):
        raise ValueError(f"datalist {given['datalist']} must have cases in and beside fold {fold}.")
    return cases, held_out


def _data_set(given: Mapping[str, Any], cases: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the cases as nnU-Net lists them, with the names of the classes."""
    names = given.get("class_names")
    if given.get("sigmoid") or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"input must have class_names, names without the background, and no sigmoid for {NAME}, got "
            f'{names!r}: "class_names": ["liver", "tumour"] for the values 1 and 2.'
        )
    modality = str(given["modality"])
    return {
        "channel_names": {"0": CHANNEL.get(modality.lower(), modality)},
        "labels": {"background": 0, **{name: n for n, name in enumerate(names, 1)}},
        "file_ending": ".nii.gz",
        "numTraining": len(cases),
        "dataset": {case["scan"]: {"images": [case["image"]], "label": case["label"]} for case in cases},
    }


def _plan(given: Mapping[str, Any], data: Path, bundle: Path, held_out: float) -> None:
    options = dict(given.get(NAME) or {})
    if unknown := sorted(options.keys() - {*PLANNED}):
        raise ValueError(f"{NAME} of the input must have keys among {', '.join(PLANNED)}, got {unknown[0]}.")
    settings = {"val_fraction": round(held_out, 4), **options.pop("set", {})}
    if options.get("memory") is not None:
        options["memory"] = parse_memory(str(options["memory"]))
    source = Source(data, allow_outside=True)  # the files that the user's own list names
    plan_bundle(source, bundle, given=settings, **options)
