# SPDX-License-Identifier: Apache-2.0
"""`python3 -m coresnap.cli` is coresnap."""

import sys

from coresnap.cli import main

if __name__ == "__main__":
    sys.exit(main())
