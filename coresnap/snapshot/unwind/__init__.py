# SPDX-License-Identifier: Apache-2.0
"""The unwinder: from a thread's registers to the frames of its stack, by call frame information, else by guesses."""
