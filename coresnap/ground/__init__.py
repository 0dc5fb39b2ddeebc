# SPDX-License-Identifier: Apache-2.0
"""The ground everything stands on: errors, settings, log, durable file operations, child processes."""
