# SPDX-License-Identifier: Apache-2.0
"""The snapshot: from a core, and the asset beside it, to a report in Backtrace's JSON format."""
