# SPDX-License-Identifier: Apache-2.0
"""Where in the system a process belonged: its unit, session and container, from the path of its control group.

systemd's naming: slices hold slices, services and scopes; a user's manager is user@UID.service, and the units below it are
that user's; `_` before a name escapes it (systemd.slice(5), systemd.scope(5), systemd-cgls(1)). A process can choose none of
these names, but a container's manager can: they are text, and nothing is looked up by them.
"""

import re

_TEXT_MAX = 4096
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}\.(?:service|scope)")
_SESSION = re.compile(r"session-([A-Za-z0-9]{1,64})\.scope")
_USER_SLICE = re.compile(r"user-([0-9]{1,10})\.slice")
#: What managers of containers call a container's control group; the group is its name or the beginning of its id.
_CONTAINERS = (
    ("nspawn", re.compile(r"machine-(.{1,200})\.scope")),
    ("nspawn", re.compile(r"systemd-nspawn@(.{1,200})\.service")),
    ("docker", re.compile(r"docker-([0-9a-f]{12})[0-9a-f]*\.scope")),
    ("podman", re.compile(r"libpod-(?:payload-)?([0-9a-f]{12})[0-9a-f]*(?:\.scope)?")),
    ("cri-o", re.compile(r"crio-([0-9a-f]{12})[0-9a-f]*\.scope")),
    ("containerd", re.compile(r"cri-containerd-([0-9a-f]{12})[0-9a-f]*\.scope")),
    ("lxc", re.compile(r"lxc\.payload\.(.{1,200})")),
)
#: A newer systemd-nspawn's (262) is the container's name alone: the slice above tells it, and the group below.
_MACHINES = re.compile(r"machine(?:-.{1,200})?\.slice")
_MACHINE = (("nspawn", re.compile(r"(.{1,200})\.scope")),)
_PAYLOAD = "payload"
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")

#: What the container is called of a process in a pid namespace of its own that no manager has named.
PID_NAMESPACE = "pid namespace"

#: The keys of what place_of returns.
KEYS = ("cgroup", "unit", "user_unit", "slice", "session", "owner_uid", "container")


def place_of(cgroup_file: bytes, status_file: bytes = b"") -> "dict[str, str | int | None]":
    """Return the place that /proc/PID/cgroup tells, and /proc/PID/status whether it is in a pid namespace of its own.

    What is not told is None. `container` is `KIND:NAME`, or `pid namespace` where a container's manager has named nothing.
    """
    place: dict[str, str | int | None] = dict.fromkeys(KEYS)
    path = _path(cgroup_file)
    if path is not None:
        place["cgroup"] = path
        _read_path(place, [_unescaped(part) for part in path.split("/") if part])
    if place["container"] is None and _has_pid_namespace(status_file):
        place["container"] = PID_NAMESPACE
    return place


def _path(cgroup_file: bytes) -> "str | None":
    """Return the path in the unified hierarchy, or in systemd's own of version 1. cgroups(7): number:controllers:path."""
    found = None
    for line in cgroup_file.decode("utf-8", "replace").splitlines()[:100]:
        number, _colon, rest = line.partition(":")
        controllers, _colon, path = rest.partition(":")
        if number == "0" or controllers == "name=systemd":
            found = path.removesuffix(" (deleted)")[:_TEXT_MAX]
            if controllers:
                break
    return found


def _read_path(place: "dict[str, str | int | None]", parts: "list[str]") -> None:
    slices: list[str] = []
    unit = user_unit = None
    in_user_manager = False
    for above, part, below in zip(["", *parts], parts, [*parts[1:], ""], strict=False):
        kind, name = _container(above, part, below)
        if kind and place["container"] is None:
            place["container"] = f"{kind}:{name}"
        if part.endswith(".slice"):
            slices += [part] if unit is None else []
            owner = _USER_SLICE.fullmatch(part)
            if owner:
                place["owner_uid"] = int(owner[1])
        elif _UNIT.fullmatch(part):
            if unit is None:
                unit = part
                in_user_manager = part.startswith("user@") and part.endswith(".service")
                session = _SESSION.fullmatch(part)
                if session:
                    place["session"] = session[1]
            elif in_user_manager and user_unit is None and part != "init.scope":
                user_unit = part
    place["unit"], place["user_unit"] = unit, user_unit
    if unit is not None or slices:
        place["slice"] = slices[-1] if slices else "-.slice"


def _container(above: str, part: str, below: str) -> "tuple[str, str]":
    is_machine = below == _PAYLOAD and _MACHINES.fullmatch(above)
    for kind, pattern in (*_CONTAINERS, *_MACHINE) if is_machine else _CONTAINERS:
        found = pattern.fullmatch(part)
        if found:
            return kind, _ESCAPED.sub(lambda match: chr(int(match[1], 16)), found[1])
    return "", ""


def _unescaped(part: str) -> str:
    """Return a control group's name as the unit's: systemd puts `_` before one that the kernel could mistake for a file."""
    return part.removeprefix("_")


def _has_pid_namespace(status_file: bytes) -> bool:
    """NSpid: the process's number in each pid namespace, from ours inwards; proc_pid_status(5)."""
    for line in status_file.splitlines()[:100]:
        if line.startswith(b"NSpid:"):
            return len(line.split()) > 2
    return False
