# SPDX-License-Identifier: Apache-2.0
"""Capture: from a crash to a dump in pending. The first half runs while the crashed process is held, the second after."""
