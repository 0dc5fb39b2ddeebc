# SPDX-License-Identifier: Apache-2.0
"""What several tests need: a site (spool, store and settings in one directory) and what holds for every spool."""
