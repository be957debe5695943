# SPDX-License-Identifier: Apache-2.0
"""nnU-Net v2 with its own network and with ours: same plans, fold, iterations and augmentation, on a CPU.

One row of the CSV for their network, and one for each level of ours. Each training is resumed where it
stopped, and rows that are there are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_unetpp.files import atomic_write, read_csv, write_csv

DATASET, NUMBER = "Dataset904_Hippocampus", 904
CONFIGURATION = "3d_fullres"
RUNS = {"nnUNetTrainer": "their network", "nnUNetTrainerUNetPlusPlus": "UNet++"}
TIMED_CASES = 5  # whose prediction is timed

Json = dict[str, Any]


def main() -> None:
    """Prepare the data set, train what is missing, and append what was measured."""
    args = _arguments()
    length = f"{args.epochs}x{args.iterations}"  # of another length is another training
    folders = {"raw": "raw", "preprocessed": "preprocessed", "results": f"results_{length}_seed{args.seed}"}
    os.environ |= {f"nnUNet_{name}": str(args.work / folder) for name, folder in folders.items()}
    os.environ |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}  # read when nnU-Net is imported
    torch.set_num_threads(args.threads)
    _prepare(args)
    for trainer in args.trainers:
        iterations = args.epochs * args.iterations
        key = {"network": RUNS[trainer], "seed": str(args.seed), "iterations": str(iterations)}
        key |= {"configuration": _configuration(args), "fold": str(args.fold)}
        if any(all(row[name] == value for name, value in key.items()) for row in _rows(args.out)):
            continue
        made = _train(args, trainer)
        _append(args.out, [{**key, **row} for row in _measure(args, made)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Task04_Hippocampus of the Decathlon")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and trainings")
    parser.add_argument("--out", type=Path, required=True, help="CSV to append to")
    parser.add_argument("--trainers", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--cases", type=int, help="first cases of the data set; default all")
    parser.add_argument("--epochs", type=int, default=20, help="each ends in a checkpoint (%(default)s)")
    parser.add_argument("--iterations", type=int, default=50, help="of an epoch (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="patches per iteration (%(default)s)")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage (%(default)s)")
    parser.add_argument("--fold", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    return parser.parse_args()


def _prepare(args: argparse.Namespace) -> None:
    """Write the data set in nnU-Net's layout, plan and preprocess it; a narrow configuration for a CPU."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    raw, path = args.work / "raw" / DATASET, args.work / "preprocessed" / DATASET / "nnUNetPlans.json"
    if not (raw / "dataset.json").is_file():
        _convert(args.data, raw, args.cases)
    if not path.with_name("prepared").is_file():
        api.extract_fingerprints([NUMBER], num_processes=1)
        api.plan_experiments([NUMBER])
        api.preprocess([NUMBER], configurations=(CONFIGURATION,), num_processes=(1,))
        path.with_name("prepared").touch()
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # patches are cut in this process: equal seeds, equal patches
    plans = json.loads(path.read_text())
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    kwargs = architecture["arch_kwargs"]
    kwargs["features_per_stage"] = [args.width * 2**i for i in range(kwargs["n_stages"])]
    narrow = {"inherits_from": CONFIGURATION, "batch_size": args.batch, "architecture": architecture}
    original = json.loads(path.read_text())
    original["configurations"][_configuration(args)] = narrow
    with atomic_write(path) as part:
        part.write_text(json.dumps(original, indent=4))


def _configuration(args: argparse.Namespace) -> str:
    return f"3d_width{args.width}_batch{args.batch}"


def _convert(data: Path, raw: Path, cases: int | None) -> None:
    index = json.loads((data / "dataset.json").read_text())
    listed = index["training"][:cases]
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for case in listed:
        name = Path(case["image"]).name.removesuffix(".nii.gz")
        shutil.copyfile(data / case["image"], raw / "imagesTr" / f"{name}_0000.nii.gz")
        shutil.copyfile(data / case["label"], raw / "labelsTr" / f"{name}.nii.gz")
    described = {
        "channel_names": index["modality"],
        "labels": {name: int(value) for value, name in index["labels"].items()},
        "numTraining": len(listed),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(described))


def _trainer(args: argparse.Namespace, name: str, resume: bool) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from monai_unetpp.nnunet.trainer.unetplusplus_trainer import nnUNetTrainerUNetPlusPlus

    kinds = {"nnUNetTrainer": nnUNetTrainer, "nnUNetTrainerUNetPlusPlus": nnUNetTrainerUNetPlusPlus}
    folder = args.work / "preprocessed" / DATASET
    plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": resume}
    dataset = json.loads((folder / "dataset.json").read_text())
    trainer = kinds[name](plans, _configuration(args), args.fold, dataset, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = args.epochs, args.iterations
    trainer.num_val_iterations_per_epoch = max(1, args.iterations // 5)
    trainer.save_every = 1
    return trainer


def _train(args: argparse.Namespace, name: str) -> Any:
    """Return the trained trainer; a training that was stopped is resumed from its last epoch."""
    from nnunetv2.run.run_training import maybe_load_checkpoint

    _seed(args.seed)
    stored = _trainer(args, name, False).output_folder
    resume = any(Path(stored).glob("checkpoint_*.pth"))
    trainer = _trainer(args, name, resume)
    maybe_load_checkpoint(trainer, resume, False)
    times = Path(stored) / "iterations.json"
    known = json.loads(times.read_text()) if resume and times.is_file() else []
    if trainer.current_epoch >= args.epochs:
        return trainer
    _seed(args.seed + 1000 * trainer.current_epoch)  # patches of the epoch, resumed or not
    step, end = trainer.train_step, trainer.on_epoch_end

    def timed(batch: Json) -> Any:
        started = time.perf_counter()
        result = step(batch)
        known.append(time.perf_counter() - started)
        return result

    def ended() -> None:
        times.write_text(json.dumps(known))
        end()
        _seed(args.seed + 1000 * trainer.current_epoch)

    trainer.train_step, trainer.on_epoch_end = timed, ended
    trainer.run_training()
    return trainer


def _measure(args: argparse.Namespace, trainer: Any) -> list[Json]:
    """Return a row for their network, or one for each level of ours."""
    shared = {
        "cases": len(trainer.do_split()[1]),
        "patch": " ".join(map(str, trainer.configuration_manager.patch_size)),
        "batch": trainer.batch_size,
        "width": args.width,
        "threads": args.threads,
        "iteration_s": round(statistics.median(_times(trainer)), 3),
    }
    if trainer.__class__.__name__ == "nnUNetTrainer":
        trainer.perform_actual_validation()
        summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
        names = {str(value): name for name, value in trainer.dataset_json["labels"].items()}
        by_class = {f"dice {names[key]}": round(each["Dice"], 4) for key, each in summary["mean"].items()}
        mean, weights = (
            summary["foreground_mean"]["Dice"],
            sum(p.numel() for p in trainer.network.parameters()),
        )
        return [_row("-", mean, by_class, weights, _prediction(trainer, None), shared)]
    from monai_unetpp.nnunet.levels import score_fold
    from monai_unetpp.nnunet.models import Fold

    scores = score_fold(
        Fold(Path(trainer.output_folder), _configuration(args)), torch.device("cpu"), rounds=1
    )
    rows = []
    for score in scores:
        by_class = {f"dice {name}": round(dice, 4) for name, dice in score.dice_per_class.items()}
        seconds = _prediction(trainer, score.level)
        rows.append(_row(f"L{score.level}", score.dice, by_class, score.parameters, seconds, shared))
    return rows


def _row(level: str, dice: float, by_class: Json, weights: int, seconds: float, shared: Json) -> Json:
    measured = {"dice": round(dice, 4), **by_class, "prediction_s": round(seconds, 3), "parameters": weights}
    return {"level": level, **measured, **shared}


def _times(trainer: Any) -> list[float]:
    found: list[float] = json.loads((Path(trainer.output_folder) / "iterations.json").read_text())
    return found


def _prediction(trainer: Any, level: int | None) -> float:
    """Return the median time of a prediction, windows and mirroring, over the first validation cases, s."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
    trainer.set_deep_supervision_enabled(False)
    managers = (trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json)
    axes = trainer.inference_allowed_mirroring_axes
    predictor.manual_initialization(trainer.network, *managers, trainer.__class__.__name__, axes)
    if level is not None:
        trainer.network.net.level = level
    data = trainer.dataset_class(trainer.preprocessed_dataset_folder, trainer.do_split()[1][:TIMED_CASES])
    seconds = []
    for name in [data.identifiers[0], *data.identifiers]:  # the first one warms up
        image = torch.from_numpy(np.array(data.load_case(name)[0][:]))
        started = time.perf_counter()
        predictor.predict_sliding_window_return_logits(image)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  nnU-Net draws from numpy's global generator
    torch.manual_seed(seed)


def _rows(path: Path) -> list[dict[str, str]]:
    return read_csv(path) if path.is_file() else []


def _append(path: Path, rows: list[Json]) -> None:
    write_csv(path, [*_rows(path), *rows])


if __name__ == "__main__":
    main()
