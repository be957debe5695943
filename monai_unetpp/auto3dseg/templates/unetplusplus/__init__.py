# SPDX-License-Identifier: Apache-2.0
"""The template: what Auto3DSeg copies into the folder of each fold."""
