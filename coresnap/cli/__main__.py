#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""`python3 -m coresnap.cli`, or this file, is coresnap."""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))

from coresnap.cli import main

if __name__ == "__main__":
    sys.exit(main())
