# SPDX-License-Identifier: Apache-2.0
"""coresnap gathers, analyses and delivers core dumps."""

__version__ = "0.1.0"
