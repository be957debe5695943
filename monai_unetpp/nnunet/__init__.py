# SPDX-License-Identifier: Apache-2.0
"""UNet++ in nnU-Net v2: its plans, data, augmentation, folds and commands, with our network and its levels.

- trainer/: the folder for the environment variable ``nnUNet_extTrainer``
- architecture: from a configuration of plans to our network
- plans: a configuration that fits the memory of theirs
- models: trained folds in the folders of nnU-Net, and its predictor
- levels: every level on the validation cases of a fold
- export: one level as a bundle, with their preprocessing
- resampling, preprocessing, windows, inferer: what such a bundle computes, without nnU-Net

Only ``trainer``, ``models``, ``levels`` and ``export`` require ``pip install "monai-unetpp[nnunet]"``.
"""
