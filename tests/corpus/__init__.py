# SPDX-License-Identifier: Apache-2.0
"""The corpus: programs that die in every way that a stack can be in, and what a debugger says of each."""
