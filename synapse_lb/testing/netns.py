# SPDX-License-Identifier: AGPL-3.0-or-later
"""Network namespaces of Linux with one TUN device each; needs root, and no tool but the kernel.

A `Namespace` has no name and no process: an open file keeps it, so that the kernel removes it, its device and its
sockets when this process ends, however it ends. Which namespace a socket belongs to is decided when it is made, by the
thread that makes it; `Namespace.entered` moves the calling thread there and back. Child processes inherit it.

The calls: unshare(2), setns(2), ``TUNSETIFF`` (linux/if_tun.h), netdevice(7), rtnetlink(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_OWN_NAMESPACE: Final = "/proc/thread-self/ns/net"

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFDSTADDR: Final = 0x8918
_SIOCSIFNETMASK: Final = 0x891C
_SIOCSIFMTU: Final = 0x8922
_SIOCSIFTXQLEN: Final = 0x8943
_IFF_UP_RUNNING: Final = 0x41

_NLM_REQUEST_ACK_REPLACE_CREATE: Final = 0x1 | 0x4 | 0x100 | 0x400
_RTM_NEWROUTE: Final = 24
_NLMSG_ERROR: Final = 2
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_METRICS: Final = 8
_RTAX_CC_ALGO: Final = 16

TUN: Final = "tun0"
"""Name of the device; each namespace has its own."""

MTU: Final = 1500
"""Bytes of the largest IP packet, as on an Ethernet."""

_DEVICE_QUEUE: Final = 10_000
"""Packets that wait for the reader of a device; more than any window, for the link is to drop, not the device."""


class LinkUnavailable(Exception):
    """This system, or this user, cannot make namespaces or TUN devices; the text says what is missing."""


def why_unavailable() -> str | None:
    """Say why no namespace with a TUN device can be made here; None if one can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces and TUN devices exist on Linux only"
    try:
        with contextlib.closing(Namespace("192.0.2.1", "192.0.2.2")):
            return None
    except LinkUnavailable as error:
        return str(error)


class Namespace:
    """A network namespace with a loopback interface and one TUN device, point to point.

    Args:
        address: IPv4 address of the device.
        peer: IPv4 address at its other end.

    Attributes:
        tun: file descriptor of the device: what the kernel sends is read from it, one packet at a time, and what
            is written to it arrives. Not blocking. Belongs to this object.

    Raises:
        LinkUnavailable: it cannot be made.
    """

    def __init__(self, address: str, peer: str) -> None:
        self.address: Final = address
        self.peer: Final = peer
        own = _open_namespace()
        try:
            _call("unshare", _CLONE_NEWNET)
        except OSError as error:
            os.close(own)
            raise LinkUnavailable(f"no network namespace ({error.strerror}): this needs root") from error
        try:
            self._file = _open_namespace()
            self.tun = self._set_up()
        finally:
            _enter(own)
            os.close(own)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have the calling thread in this namespace; leaves it where it was before."""
        own = _open_namespace()
        try:
            _enter(self._file)
            try:
                yield
            finally:
                _enter(own)
        finally:
            os.close(own)

    def close(self) -> None:
        """Let go of the device and the namespace; it goes when its last socket and process have gone. Idempotent."""
        for file in (self.tun, self._file):
            if file >= 0:
                os.close(file)
        self.tun = self._file = -1

    def congestion_controls(self) -> list[str]:
        """Return TCP's congestion controls that this kernel has loaded, its default first."""
        with self.entered():
            default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
            names = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
        return [default, *(name for name in names if name != default)]

    def use_congestion_control(self, name: str) -> None:
        """Have TCP send with this congestion control from here on connections that are made from now on.

        It is set on the route: the sysctl of a namespace takes only those that its users are allowed.

        Raises:
            LinkUnavailable: the kernel does not have it.
        """
        with self.entered():
            try:
                _replace_route(self.peer, name)
            except OSError as error:
                raise LinkUnavailable(f"no congestion control {name}: {error.strerror}") from error

    def _set_up(self) -> int:
        """Make the devices in this namespace, in which the thread is; on failure, let go of it."""
        tun = -1
        try:
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", TUN.encode(), _IFF_TUN_NO_PI))
            _configure(self.address, self.peer)
            _forget_measured_paths()
        except OSError as error:
            for file in (tun, self._file):
                if file >= 0:
                    os.close(file)
            raise LinkUnavailable(f"no TUN device: {error}") from error
        return tun


def _open_namespace() -> int:
    try:
        return os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LinkUnavailable(f"no network namespaces: {error}") from error


def _enter(namespace: int) -> None:
    _call("setns", namespace, _CLONE_NEWNET)


def _call(name: str, *arguments: int) -> None:
    # Python has os.unshare and os.setns from 3.12 on.
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _configure(address: str, peer: str) -> None:
    """Give the TUN device its addresses and bring it and the loopback interface up (netdevice(7))."""
    name = TUN.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in (
            (_SIOCSIFADDR, address),
            (_SIOCSIFDSTADDR, peer),
            (_SIOCSIFNETMASK, "255.255.255.255"),
        ):
            packed = struct.pack("16sH2x4s16x", name, socket.AF_INET, socket.inet_aton(value))
            fcntl.ioctl(control, request, packed)
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", name, MTU))
        fcntl.ioctl(control, _SIOCSIFTXQLEN, struct.pack("16si20x", name, _DEVICE_QUEUE))
        for device in (b"lo", name):
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", device, _IFF_UP_RUNNING))


def _forget_measured_paths() -> None:
    """Keep TCP from starting a connection with what an earlier one measured: each is the first on its way."""
    file = os.open("/proc/sys/net/ipv4/tcp_no_metrics_save", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, b"1")
    finally:
        os.close(file)


def _replace_route(peer: str, congestion_control: str) -> None:
    """Do what `ip route replace PEER dev tun0 congctl NAME` does (rtnetlink(7))."""
    name = congestion_control.encode() + b"\0"
    body = struct.pack("=8BI", socket.AF_INET, 32, 0, 0, 254, 4, 253, 1, 0)  # main, static, link, unicast
    body += _attribute(_RTA_DST, socket.inet_aton(peer))
    body += _attribute(_RTA_OIF, struct.pack("=I", socket.if_nametoindex(TUN)))
    body += _attribute(_RTA_METRICS, _attribute(_RTAX_CC_ALGO, name))
    header = struct.pack("=IHHII", 16 + len(body), _RTM_NEWROUTE, _NLM_REQUEST_ACK_REPLACE_CREATE, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(header + body)
        answer = netlink.recv(4096)
    kind, error = struct.unpack_from("=4xH10xi", answer)
    if kind != _NLMSG_ERROR or error:
        raise OSError(-error, os.strerror(-error))


def _attribute(kind: int, content: bytes) -> bytes:
    length = 4 + len(content)
    return struct.pack("=HH", length, kind) + content + bytes(-length % 4)
