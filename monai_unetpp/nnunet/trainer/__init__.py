# SPDX-License-Identifier: Apache-2.0
"""Folder for ``nnUNet_extTrainer``: nnU-Net imports every module in it. It holds the trainer alone."""
