# SPDX-License-Identifier: Apache-2.0
"""What coresnapd does to the machine it runs on: it claims core_pattern and gives it back, and fits the units to the settings."""
