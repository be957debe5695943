# SPDX-License-Identifier: Apache-2.0
"""From a folder of scans to a folder of masks, by a bundle's own inference configuration."""

from monai_unetpp.segment.run import Outcome, Pipeline, as_text, load_pipeline, segment, segment_distributed

__all__ = ["Outcome", "Pipeline", "as_text", "load_pipeline", "segment", "segment_distributed"]
