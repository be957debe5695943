# SPDX-License-Identifier: Apache-2.0
"""An application of MONAI Deploy: a DICOM series -> a mask, by a packed bundle.

python deploy_app.py SERIES BUNDLE MASK.npy

BUNDLE is ``models/model.ts`` of a packed bundle, or its folder.
"""

import sys
from pathlib import Path

import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator
from monai.deploy.operators import (
    DICOMDataLoaderOperator,
    DICOMSeriesSelectorOperator,
    DICOMSeriesToVolumeOperator,
    IOMapping,
    MonaiBundleInferenceOperator,
)

SERIES, BUNDLE, MASK = sys.argv[1:]


class Save(Operator):
    """Writes the voxels of a mask, (Z, Y, X) as MONAI Deploy has them."""

    def setup(self, spec):
        """Take one mask."""
        spec.input("pred")

    def compute(self, op_input, op_output, context):  # noqa: ARG002
        """Write it."""
        np.save(MASK, op_input.receive("pred").asnumpy())


class Segment(Application):
    """Loads, selects, converts, infers, saves."""

    def compose(self):
        """Connect the operators."""
        files = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(SERIES), name="files"
        )
        series = DICOMSeriesSelectorOperator(self, name="series")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        bundle = MonaiBundleInferenceOperator(
            self,
            app_context=AppContext({}),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=Path(BUNDLE),
            name="bundle",
        )
        self.add_flow(files, series, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(series, volume, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(volume, bundle, {("image", "image")})
        self.add_flow(bundle, Save(self, name="save"), {("pred", "pred")})


if __name__ == "__main__":
    sys.argv = sys.argv[:1]  # holoscan has options of its own
    Segment().run()
