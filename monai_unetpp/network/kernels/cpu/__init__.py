# SPDX-License-Identifier: Apache-2.0
"""Kernels for the CPU, where they were measured: float32, in channels last, by oneDNN.

norm       instance norm and activation in one pass
winograd   3D convolution with half the multiplications
operators  torch's private operators, each tried before it is used; operators for ``torch.compile``
"""
