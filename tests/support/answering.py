# SPDX-License-Identifier: Apache-2.0
"""A sender's worker that answers what a file says, for tests of the owner alone; it notes what it was asked for.

    answering.py DIRECTORY

DIRECTORY/rules is a JSON list of [key, pattern, answer]: the first whose key of the request matches answers; without one
the dump is delivered. DIRECTORY/asked gets a line of JSON for each request.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from coresnap.ground import wire


def _answer(directory: Path, request: dict[str, Any]) -> dict[str, Any]:
    for key, pattern, answer in json.loads((directory / "rules").read_text()):
        if re.fullmatch(pattern, str(request[key])):
            if answer is None:
                os._exit(1)
            return dict(answer)
    receipt = {
        "version": 1,
        "uuid": request["uuid"],
        "store": "answering",
        "project": request["project"],
        "object": request["uuid"],
        "acknowledged_usec": time.time_ns() // 1000,
        "size_bytes": request["snapshot"]["size_bytes"],
        "sha256": request["snapshot"]["sha256"],
        "already_there": False,
    }
    return {"status": "delivered", "receipt": receipt}


def main(directory: Path) -> None:
    """Answer until the owner hangs up."""
    with socket.socket(fileno=os.dup(0)) as connection:
        while (received := wire.receive(connection, max_fds=8)) is not None:
            request, fds = received
            for fd in fds:
                os.close(fd)
            with (directory / "asked").open("a") as asked:
                asked.write(json.dumps(request) + "\n")
            wire.send(connection, {"version": 1, **_answer(directory, request)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
