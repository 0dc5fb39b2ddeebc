# SPDX-License-Identifier: Apache-2.0
"""A certificate authority of a test's own, made on the spot by openssl(1)."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files: the authority, a server's certificate and key in one file, a client's in two."""

    ca: Path
    server: Path
    client: Path
    client_key: Path


def make(directory: Path, names: str = _NAMES) -> Certificates:
    """Make an authority, a server that has `names` and a client, in a directory that there is."""
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    start = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    # Python 3.13 and later take no authority without it.
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    _openssl(*start, *usage, "-keyout", str(ca_key), "-out", str(ca), "-subj", "/CN=the test's authority")
    made = {}
    for name, extension in (("server", names), ("client", "extendedKeyUsage=clientAuth")):
        key, certificate = directory / f"{name}.key", directory / f"{name}.pem"
        signed = ["-CA", str(ca), "-CAkey", str(ca_key), "-addext", "basicConstraints=critical,CA:FALSE"]
        _openssl(
            *start, *signed, "-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={name}", "-addext", extension
        )
        made[name] = certificate, key
    (certificate, key) = made["server"]
    with certificate.open("a") as file:
        file.write(key.read_text())
    return Certificates(ca, certificate, *made["client"])


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
