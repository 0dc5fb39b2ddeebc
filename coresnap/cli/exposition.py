# SPDX-License-Identifier: Apache-2.0
"""The metrics, each declared once, and their text for Prometheus. What is not declared here cannot be printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Sample = tuple[str, Mapping[str, str], float]


class Metric(NamedTuple):
    """A metric: its type, what it says, the names of its labels."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


METRICS = {
    "coresnap_build_info": Metric("gauge", "The version of coresnap; the value is always 1.", ("version",)),
    "coresnap_dumps": Metric("gauge", "Dumps in each stage.", ("stage",)),
    "coresnap_dumps_disk_bytes": Metric("gauge", "Bytes on the disk that the dumps of each stage take.", ("stage",)),
    "coresnap_oldest_dump_timestamp_seconds": Metric("gauge", "When the oldest dump of a stage crashed.", ("stage",)),
    "coresnap_latest_dump_timestamp_seconds": Metric("gauge", "When the latest dump of a stage crashed.", ("stage",)),
    "coresnap_dumps_pinned": Metric("gauge", "Dumps that purge does not remove because they are pinned."),
    "coresnap_dumps_unreadable": Metric("gauge", "Dumps whose record cannot be read."),
    "coresnap_filesystem_size_bytes": Metric("gauge", "Size of the file system of dump.root."),
    "coresnap_filesystem_free_bytes": Metric("gauge", "What is free on the file system of dump.root."),
    "coresnap_quota_free_bytes": Metric("gauge", "What dump.quota demands to stay free there."),
    "coresnap_cores_not_kept_total": Metric(
        "counter", "Cores that were not kept, by the ledger's reasons.", ("reason",)
    ),
    "coresnap_deliveries_total": Metric("counter", "Dumps that a store has acknowledged.", ("store",)),
    "coresnap_delivery_failures_total": Metric("counter", "Tries of a delivery that did not get through.", ("store",)),
    "coresnap_store_up": Metric("gauge", "Whether a store takes dumps, as far as the sender knows.", ("store",)),
    "coresnap_store_next_try_timestamp_seconds": Metric("gauge", "When a store that takes none is tried.", ("store",)),
    "coresnap_projects_parked": Metric("gauge", "Projects of stores that take nothing until somebody mends something."),
    "coresnap_last_capture_held_seconds": Metric("gauge", "How long the latest crashed process was held."),
    "coresnap_last_capture_timestamp_seconds": Metric("gauge", "When the latest process that was held crashed."),
    "coresnap_core_pattern_owned": Metric("gauge", "Whether the kernel's core_pattern is coresnap's."),
}


def text(samples: Iterable[Sample]) -> str:
    """Return the text of these samples, metric by metric. Raises ValueError for one that is not as declared."""
    lines: dict[str, list[str]] = {name: [] for name in METRICS}
    for name, labels, value in samples:
        if name not in METRICS or tuple(labels) != METRICS[name].labels:
            raise ValueError(f"{name}, with the labels {list(labels)}, is not declared")
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        number = str(value) if isinstance(value, int) else f"{value:.6f}"
        lines[name].append(f"{name}{{{shown}}} {number}\n" if shown else f"{name} {number}\n")
    parts = []
    for name, metric in METRICS.items():
        parts += [f"# HELP {name} {metric.help}\n", f"# TYPE {name} {metric.kind}\n", *lines[name]]
    return "".join(parts)


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").encode("utf-8", "replace").decode()
