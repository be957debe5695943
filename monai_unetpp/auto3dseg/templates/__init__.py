# SPDX-License-Identifier: Apache-2.0
"""The folder for templates_path_or_url: one folder for each algorithm."""
