# SPDX-License-Identifier: Apache-2.0
"""The two modules that Auto3DSeg looks for."""
