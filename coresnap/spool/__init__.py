# SPDX-License-Identifier: Apache-2.0
"""The spool: a dump is a directory, its stage is where that directory lies, a transition is rename(2)."""
