# SPDX-License-Identifier: Apache-2.0
"""Kernels for a GPU, where they were measured: by Triton, in channels last.

norm    instance norm and activation in one pass
passes  what Triton compiles
"""
