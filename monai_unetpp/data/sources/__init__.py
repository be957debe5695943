# SPDX-License-Identifier: Apache-2.0
"""Data sets of others, brought into the layout of the Decathlon."""
