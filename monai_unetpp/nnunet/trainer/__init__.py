# SPDX-License-Identifier: Apache-2.0
"""The folder for ``nnUNet_extTrainer``: nnU-Net imports every module in it, and it holds the trainer alone."""
