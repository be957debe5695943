# SPDX-License-Identifier: Apache-2.0
"""Pictures of held-out cases, each segmented as a user would, by the network that was not trained on it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_unetpp.data import fold_folder
from monai_unetpp.fitting.outcome import Outcome
from monai_unetpp.fitting.stages import Training
from monai_unetpp.readers import is_picture, volume_loader
from monai_unetpp.readers.picture import read_numbers
from monai_unetpp.regions import to_regions, write_regions
from monai_unetpp.report import CasePicture, draw_case, read_results, representative_cases
from monai_unetpp.segment import segment

__all__ = ["draw_cases"]

logger = logging.getLogger(__name__)


def draw_cases(trainings: Sequence[Training], outcome: Outcome) -> list[CasePicture]:
    """Return pictures of the best, the median and the worst held-out case at the chosen level.

    A case that cannot be segmented or drawn is left out, and a warning says why.

    Args:
        trainings: Folds whose levels are scored.
        outcome: The choice.
    """
    bundle = trainings[0].bundle
    config = ConfigParser(ConfigParser.load_config_file(bundle / "train.json"))
    config["bundle_root"] = str(bundle)
    loader = config.get_parsed_content("preprocessing_transforms")[0]
    regions, order = config["regions"], config["regions_class_order"]
    cases = {_first(case["image"]): case for case in config.get_parsed_content("dataset").cases}
    of_fold = {fold_folder(training.folds, training.fold).strip("/"): training for training in trainings}
    found = []
    for each in representative_cases(read_results(bundle), outcome.level, outcome.precision):
        try:
            mask = _segmented(each.case, of_fold[each.fold], outcome)
            loaded = loader(dict(cases[each.case]))
            image, label = loaded["image"], loaded["label"]
            if regions is not None:  # in the values that a mask has
                label = write_regions(to_regions(label, regions), order)[None]
            picture = is_picture(each.case)
            drawn = draw_case(
                each.case, each.dice, image[0], label[0], mask, affine=image.affine, picture=picture
            )
        except Exception as error:  # a report without this picture is better than none
            logger.warning(f"No picture of {each.case} in the report: {error}")
            continue
        found.append(drawn)
    return found


def _first(image: Any) -> str:
    return str(image[0] if isinstance(image, (list, tuple)) else image)


def _segmented(image: str, training: Training, outcome: Outcome) -> Any:
    """Return the label map of a case, on its own grid."""
    with tempfile.TemporaryDirectory() as folder:
        [done] = segment(
            image,
            folder,
            training.bundle,
            ckpt_path=training.weights,
            level=outcome.level,
            precision=outcome.precision,
            **training.device_settings,
        )
        if done.state == "failed":
            raise ValueError(done.reason)
        mask = Path(done.mask)
        found = read_numbers(mask) if is_picture(mask) else volume_loader(modality=None)(mask)[0].numpy()
    return found
