"""BPF objects, maps and programs, through libbpf (libbpf.so.1, Debian's libbpf1) by ctypes.

Once an object is loaded its descriptors are ours, and what libbpf kept of it is given back: an :class:`Object` costs
no more than its files.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple

log = logging.getLogger("npppy.bpf")

_LIBRARY: Final = "libbpf.so.1"
#: Lines of the verifier's log that an error tells.
_TAIL: Final = 20
#: Elements asked for in one system call when a map is read or emptied.
_BATCH: Final = 1024

#: How often, a millisecond apart, an element is asked for again.
_REFILLS: Final = 20

_DEBUG: Final = 2  # of enum libbpf_print_level

#: Of the kernel itself; errno.ENOTSUP is another.
_ENOTSUPP: Final = 524

# linux/bpf.h
ANY: Final = 0
NOEXIST: Final = 1
EXIST: Final = 2
LOCKED: Final = 4
SCHED_CLS: Final = 3
XDP: Final = 6
_ARRAY: Final = 2
_ARRAY_OF_MAPS: Final = 12
_MAP_CREATE: Final = struct.Struct("=QIIIIII")  # its size, four about BTF, inner map, flags
_RDONLY_PROG: Final = 1 << 7
#: Of :attr:`Map.flags`.
MMAPABLE: Final = 1 << 10
_PERCPU: Final = frozenset((5, 6, 10))  # hash, array, LRU hash
_SK_BUFF: Final = struct.Struct("40xI")  # up to ifindex
_XDP_MD: Final = struct.Struct("IIIII")  # data, its end, metadata, ingress interface, queue
_MAP_INFO: Final = struct.Struct("IIIIII16s")  # type, id, sizes of key and value, entries, flags, name
_PROG_INFO: Final = struct.Struct("II8s48x16s")  # type, id, tag, name


class BpfError(Exception):
    """What could not be done, and why."""

    def __init__(self, what: str, code: int, detail: str = "") -> None:
        """*what* follows "cannot", *code* is an errno, *detail* what libbpf and the verifier had to say."""
        hint = " (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)" if code == errno.EPERM else ""
        text = f"cannot {what}: {os.strerror(code)}{hint}"
        if detail:
            text += ("\n" if "\n" in detail else ": ") + detail
        super().__init__(text)
        self.code = code
        self.detail = detail


class Run(NamedTuple):
    """What a program made of a frame."""

    verdict: int
    data: bytes
    #: Nanoseconds each run took, on average.
    duration: int


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts"""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_char_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
#: What ends a reading of the ring buffer before its end; no function of libbpf returns it.
_ENOUGH: Final = -errno.ECANCELED
_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

# name: (result, arguments).  Keys, values and names are bytes, whose address is handed over as it is.
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "libbpf_set_print": (ctypes.c_void_p, (_PRINT,)),
    "bpf_object__open_file": (ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_void_p)),
    "bpf_object__load": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_object__close": (None, (ctypes.c_void_p,)),
    "bpf_object__next_map": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_object__next_program": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_map__name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "bpf_map__fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_map__set_max_entries": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint32)),
    "bpf_map__reuse_fd": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
    "bpf_map__type": (ctypes.c_uint32, (ctypes.c_void_p,)),
    "bpf_map__key_size": (ctypes.c_uint32, (ctypes.c_void_p,)),
    "bpf_map__value_size": (ctypes.c_uint32, (ctypes.c_void_p,)),
    "bpf_map__map_flags": (ctypes.c_uint32, (ctypes.c_void_p,)),
    "bpf_program__name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "bpf_program__fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_map_create": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p, *(ctypes.c_uint32,) * 3, ctypes.c_char_p)),
    "bpf_map_lookup_elem_flags": (
        ctypes.c_int,
        (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64),
    ),
    "bpf_map_update_elem": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64)),
    "bpf_map_delete_elem": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p)),
    "bpf_map_get_next_key": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)),
    "bpf_map_update_batch": (
        ctypes.c_int,
        (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p),
    ),
    "bpf_map_delete_batch": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_map_lookup_batch": (ctypes.c_int, (ctypes.c_int, *(ctypes.c_void_p,) * 6)),
    "bpf_prog_load": (
        ctypes.c_int,
        (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p),
    ),
    "bpf_obj_pin": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p)),
    "bpf_obj_get": (ctypes.c_int, (ctypes.c_char_p,)),
    "bpf_obj_get_info_by_fd": (ctypes.c_int, (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_prog_get_fd_by_id": (ctypes.c_int, (ctypes.c_uint32,)),
    "bpf_xdp_attach": (ctypes.c_int, (ctypes.c_int, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)),
    "bpf_xdp_query": (ctypes.c_int, (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)),
    "bpf_tc_hook_create": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_tc_attach": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_prog_test_run_opts": (ctypes.c_int, (ctypes.c_int, ctypes.c_void_p)),
    "ring_buffer__new": (ctypes.c_void_p, (ctypes.c_int, _SAMPLE, ctypes.c_void_p, ctypes.c_void_p)),
    "ring_buffer__epoll_fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "ring_buffer__consume": (ctypes.c_int, (ctypes.c_void_p,)),
    "ring_buffer__free": (None, (ctypes.c_void_p,)),
    "libbpf_num_possible_cpus": (ctypes.c_int, ()),
}

#: What libbpf had to tell since a load began.
_printed: list[str] = []


def _vasprintf() -> tuple[Any, Any]:
    libc = ctypes.CDLL(None)
    libc.vasprintf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.free.restype = None
    return libc.vasprintf, libc.free


_format, _free = _vasprintf()


def _print(level: int, text: int, arguments: int) -> int:
    """libbpf's printer.  A va_list is a pointer as far as a caller sees, on all that Linux runs on with BPF."""
    if level == _DEBUG:
        # Each relocation: some two thousand lines a load, for whoever debugs libbpf.
        return 0
    out = ctypes.c_void_p()
    if _format(ctypes.byref(out), text, arguments) < 0 or out.value is None:
        return 0
    message = ctypes.string_at(out.value).decode(errors="replace").rstrip()
    _free(out)
    _printed.append(message)
    log.debug("%s", message.removeprefix("libbpf: "))
    return 0


# libbpf keeps its address for good.
_printer: Final = _PRINT(_print)


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf.  Raises :class:`BpfError` where there is none, or none that is new enough."""
    try:
        lib = ctypes.CDLL(_LIBRARY, use_errno=True)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise BpfError(f"use {_LIBRARY} (Debian: apt install libbpf1)", errno.ENOENT, str(error)) from None
    lib.libbpf_set_print(_printer)
    return lib


class _File:
    """A descriptor of something in the kernel."""

    __slots__ = ("_lib", "fd", "name")

    def __init__(self, fd: int, name: str) -> None:
        """Takes *fd* over."""
        self._lib = library()
        self.fd = fd
        self.name = name

    def pin(self, path: str) -> None:
        """Keep it at *path*, below a BPF file system, for whoever comes later."""
        _check(f"pin {self} at {path}", self._lib.bpf_obj_pin(self.fd, os.fsencode(path)))

    def close(self) -> None:
        """Closing again does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _info(self, layout: struct.Struct) -> tuple[Any, ...]:
        info = ctypes.create_string_buffer(layout.size)
        size = ctypes.c_uint32(layout.size)
        try:
            _check(f"ask about {self}", self._lib.bpf_obj_get_info_by_fd(self.fd, info, ctypes.byref(size)))
        except BpfError:
            self.close()
            raise
        return layout.unpack(info.raw)


class Map(_File):
    """A map.  Keys and values are bytes of exactly its sizes; a wrong size is a ValueError."""

    __slots__ = ("_value", "flags", "id", "key_size", "max_entries", "octets", "type", "value_size")

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self.type, self.id, self.key_size, self.value_size, self.max_entries, self.flags, _ = self._info(_MAP_INFO)
        #: Of a value as it is looked up: those per processor have one behind the other.
        self.octets = self.value_size
        if self.type in _PERCPU:
            self.octets = (self.value_size + 7 & ~7) * int(self._lib.libbpf_num_possible_cpus())
        self._value = ctypes.create_string_buffer(self.octets)

    @classmethod
    def pinned(cls, path: str) -> Map:
        """The map pinned at *path*."""
        return cls(_pinned(path, "map"), os.path.basename(path))

    def get(self, key: bytes, flags: int = ANY) -> bytes | None:
        """The value of *key*, of :attr:`octets` octets; with LOCKED in *flags*, none of it changes meanwhile."""
        if len(key) != self.key_size:
            raise ValueError(f"{self}: key of {len(key)} octets")
        code = self._lib.bpf_map_lookup_elem_flags(self.fd, key, self._value, flags)
        if code == -errno.ENOENT:
            return None
        if code:
            _check(f"look up in {self}", code)
        return self._value.raw

    def put(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """With NOEXIST or EXIST in *flags*, raises :class:`BpfError` of EEXIST or ENOENT."""
        if len(key) != self.key_size or len(value) != self.octets:
            raise ValueError(f"{self}: key of {len(key)} octets, value of {len(value)}")
        code = self._lib.bpf_map_update_elem(self.fd, key, value, flags)
        waits = _REFILLS
        while code == -errno.ENOMEM and waits:
            # The kernel has some free elements ready, and gets more from an interrupt, which may come a tick later.
            time.sleep(0.001)
            waits -= 1
            code = self._lib.bpf_map_update_elem(self.fd, key, value, flags)
        if code:
            _check(f"write to {self}", code)

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        if len(key) != self.key_size:
            raise ValueError(f"{self}: key of {len(key)} octets")
        code: int = self._lib.bpf_map_delete_elem(self.fd, key)
        if code and code != -errno.ENOENT:
            _check(f"delete from {self}", code)
        return code == 0

    def put_many(self, keys: bytes, values: bytes) -> None:
        """Write many elements, their keys and their values one behind the other."""
        count = ctypes.c_uint32(len(keys) // self.key_size)
        if len(keys) != count.value * self.key_size or len(values) != count.value * self.octets:
            raise ValueError(f"{self}: {len(keys)} octets of keys, {len(values)} of values")
        if count.value:
            code = self._lib.bpf_map_update_batch(self.fd, keys, values, ctypes.byref(count), None)
            _check(f"write {len(keys) // self.key_size} elements to {self}", code)

    def delete_many(self, keys: bytes) -> None:
        """Delete many elements, their keys one behind the other; all must be there."""
        count = ctypes.c_uint32(len(keys) // self.key_size)
        if len(keys) != count.value * self.key_size:
            raise ValueError(f"{self}: {len(keys)} octets of keys")
        if count.value:
            code = self._lib.bpf_map_delete_batch(self.fd, keys, ctypes.byref(count), None)
            _check(f"delete {len(keys) // self.key_size} elements from {self}", code)

    def keys(self) -> Iterator[bytes]:
        """One by one.  The map must not change meanwhile, but for the key just given, which may be deleted."""
        key: bytes | None = None
        following = ctypes.create_string_buffer(self.key_size)
        while True:
            code = self._lib.bpf_map_get_next_key(self.fd, key, following)
            if key is not None:
                yield key
            if code == -errno.ENOENT:
                return
            _check(f"walk {self}", code)
            key = following.raw

    def items(self) -> list[tuple[bytes, bytes]]:
        """All elements, read in bulk."""
        found: list[tuple[bytes, bytes]] = []
        # The kernel's mark of where it is; a bucket's number or a key.
        place = ctypes.create_string_buffer(max(self.key_size, 4))
        size = min(self.max_entries, _BATCH)
        started = False
        while True:
            keys = ctypes.create_string_buffer(size * self.key_size)
            values = ctypes.create_string_buffer(size * self.octets)
            count = ctypes.c_uint32(size)
            code = self._lib.bpf_map_lookup_batch(
                self.fd, place if started else None, place, keys, values, ctypes.byref(count), None
            )
            if code == -errno.ENOSPC and not count.value:
                # One bucket of the hash holds more than that.
                size *= 2
                continue
            if code == -_ENOTSUPP:
                # Device maps have no bulk operations.
                return [(key, value) for key in list(self.keys()) if (value := self.get(key)) is not None]
            if code and code != -errno.ENOENT:
                _check(f"read {self}", code)
            started = True
            key_octets, value_octets = keys.raw, values.raw
            for at in range(count.value):
                key = key_octets[at * self.key_size : (at + 1) * self.key_size]
                found.append((key, value_octets[at * self.octets : (at + 1) * self.octets]))
            if code == -errno.ENOENT:
                return found

    def mapped(self) -> mmap.mmap:
        """The elements of a BPF_F_MMAPABLE array, of each value_size rounded up to 8; writes are seen by programs."""
        size = (self.value_size + 7 & ~7) * self.max_entries
        try:
            return mmap.mmap(self.fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        except OSError as error:
            raise BpfError(f"map {self} into memory", error.errno or errno.EINVAL) from None

    def __str__(self) -> str:
        return f"map {self.name}"


class Program(_File):
    """A program."""

    __slots__ = ("id", "tag", "type")

    def __init__(self, fd: int, name: str = "") -> None:
        """Its name, of which the kernel knows 15 characters, may be left to the kernel."""
        super().__init__(fd, name)
        self.type, self.id, self.tag, known = self._info(_PROG_INFO)
        self.name = name or known.rstrip(b"\0").decode(errors="replace")

    @classmethod
    def pinned(cls, path: str) -> Program:
        """The program pinned at *path*."""
        return cls(_pinned(path, "prog"))

    @classmethod
    def load(cls, kind: int, name: str, code: bytes) -> Program:
        """A program of a few instructions, of the type *kind*."""
        fd = library().bpf_prog_load(kind, name.encode(), b"Dual BSD/GPL", code, len(code) // 8, None)
        _check(f"load program {name}", fd)
        return cls(fd, name)

    @classmethod
    def by_id(cls, number: int) -> Program:
        """The program that the kernel calls *number*."""
        fd = library().bpf_prog_get_fd_by_id(number)
        _check(f"get program id {number}", fd)
        return cls(fd)

    def run(self, data: bytes, ifindex: int = 0, repeat: int = 1) -> Run:
        """Have the program treat a frame as if it had come from an interface of this network namespace (0: from lo).

        What it changes in maps is changed.
        """
        # A frame may grow by what encapsulation needs.
        room = ctypes.create_string_buffer(len(data) + 256)
        opts = _TestRun(sz=ctypes.sizeof(_TestRun), data_in=data, data_size_in=len(data), repeat=repeat)
        opts.data_out = ctypes.addressof(room)
        opts.data_size_out = len(room)
        if ifindex:
            context = _XDP_MD.pack(0, len(data), 0, ifindex, 0) if self.type == XDP else _SK_BUFF.pack(ifindex)
            opts.ctx_in = context
            opts.ctx_size_in = len(context)
        _check(f"run {self}", self._lib.bpf_prog_test_run_opts(self.fd, ctypes.byref(opts)))
        return Run(opts.retval, room.raw[: opts.data_size_out], opts.duration)

    def __str__(self) -> str:
        return f"program {self.name}"


class Ring:
    """The reading end of a ring buffer."""

    def __init__(self, events: Map) -> None:
        self._lib = library()
        self._take: Callable[[bytes], object] | None = None
        # libbpf keeps its address.
        self._sample = _SAMPLE(self._got)
        self._ring = self._lib.ring_buffer__new(events.fd, self._sample, None, None)
        if not self._ring:
            raise BpfError(f"read {events}", ctypes.get_errno())

    def fileno(self) -> int:
        """Readable when there is something to consume."""
        fd: int = self._lib.ring_buffer__epoll_fd(self._ring)
        return fd

    def consume(self, take: Callable[[bytes], bool | None]) -> None:
        """Hand *take* each record that is there, or until it returns True: new ones may come faster than it takes."""
        self._take = take
        code = self._lib.ring_buffer__consume(self._ring)
        if code != _ENOUGH:
            _check("read the ring buffer", code)

    def close(self) -> None:
        """To be called once."""
        self._lib.ring_buffer__free(self._ring)

    def _got(self, _: int, data: int, size: int) -> int:
        assert self._take is not None
        return _ENOUGH if self._take(ctypes.string_at(data, size)) else 0


class Object:
    """A loaded object: its maps and its programs by name."""

    def __init__(
        self, path: str, *, sizes: Mapping[str, int] | None = None, reuse: Mapping[str, Map] | None = None
    ) -> None:
        """Load the object at *path*, with the entries of maps as *sizes* says, and the maps of *reuse* for its own.

        Maps to reuse stay the caller's, and :attr:`maps` has descriptors of its own for them.  Raises
        :class:`BpfError`: with the end of the verifier's log, if it refused a program; and with EINVAL if a map to
        reuse has another type, flags or sizes than the object says.
        """
        self.maps: dict[str, Map] = {}
        self.programs: dict[str, Program] = {}
        lib = library()
        _printed.clear()
        handle = lib.bpf_object__open_file(os.fsencode(path), None)
        if not handle:
            raise BpfError(f"open the BPF object {path}", ctypes.get_errno(), _tail())
        try:
            _prepare(lib, handle, path, sizes or {}, reuse or {})
            code = lib.bpf_object__load(handle)
            if code:
                raise BpfError(f"load the BPF object {path}", -code, _tail())
            for item in _walk(lib.bpf_object__next_map, handle):
                name = lib.bpf_map__name(item).decode()
                self.maps[name] = Map(os.dup(lib.bpf_map__fd(item)), name)
            for item in _walk(lib.bpf_object__next_program, handle):
                name = lib.bpf_program__name(item).decode()
                self.programs[name] = Program(os.dup(lib.bpf_program__fd(item)), name)
        except BaseException:
            self.close()
            raise
        finally:
            lib.bpf_object__close(handle)
            _printed.clear()

    def close(self) -> None:
        """Close what is not attached or pinned for good."""
        for file in (*self.maps.values(), *self.programs.values()):
            file.close()

    def __enter__(self) -> Object:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _prepare(lib: ctypes.CDLL, handle: int, path: str, sizes: Mapping[str, int], reuse: Mapping[str, Map]) -> None:
    known = {lib.bpf_map__name(item).decode(): item for item in _walk(lib.bpf_object__next_map, handle)}
    for name in sizes.keys() | reuse.keys():
        if name not in known:
            raise BpfError(f"find map {name} in {path}", errno.ENOENT)
    for name, entries in sizes.items():
        _check(f"give map {name} {entries} entries", lib.bpf_map__set_max_entries(known[name], entries))
    for name, existing in reuse.items():
        for what in ("type", "key_size", "value_size", "map_flags"):
            wanted = getattr(lib, f"bpf_map__{what}")(known[name])
            found = getattr(existing, what.removeprefix("map_"))
            if what == "map_flags":
                # Which the kernel sets by itself on device maps.
                found &= ~_RDONLY_PROG
            if wanted != found:
                raise BpfError(f"reuse {existing}", errno.EINVAL, f"{what} is {found}, not {wanted}")
        _check(f"reuse {existing}", lib.bpf_map__reuse_fd(known[name], existing.fd))


def unpin(path: str) -> bool:
    """Remove a pin; whether it was there.  What is attached stays so."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _walk(following: Any, handle: int) -> Iterator[int]:
    item = following(handle, None)
    while item:
        yield item
        item = following(handle, item)


def wait_for_programs() -> None:
    """Return when no program runs any more that ran as this was called, on any processor."""
    lib = library()
    # The kernel promises that of writing to a map of maps, and of nothing else.
    inner = lib.bpf_map_create(_ARRAY, b"npppy_wait", 4, 4, 1, None)
    _check("make a map", inner)
    outer = -1
    try:
        options = _MAP_CREATE.pack(_MAP_CREATE.size, 0, 0, 0, 0, inner, 0)
        outer = lib.bpf_map_create(_ARRAY_OF_MAPS, b"npppy_wait", 4, 4, 1, options)
        _check("make a map of maps", outer)
        _check("wait for programs", lib.bpf_map_update_elem(outer, bytes(4), struct.pack("=i", inner), ANY))
    finally:
        for fd in (inner, outer):
            if fd >= 0:
                os.close(fd)


def _pinned(path: str, kind: str) -> int:
    fd: int = library().bpf_obj_get(os.fsencode(path))
    _check(f"get what is pinned at {path}", fd)
    # The kernel would answer questions about a map as well as about a program.
    if os.readlink(f"/proc/self/fd/{fd}") != f"anon_inode:bpf-{kind}":
        os.close(fd)
        raise BpfError(f"get what is pinned at {path}", errno.EINVAL, f"it is no bpf-{kind}")
    return fd


def _check(what: str, code: int) -> None:
    """Raise if *code*, of a libbpf function, is an error."""
    if code < 0:
        raise BpfError(what, -code)


def _tail() -> str:
    """The end of what libbpf printed, the verifier's log in it."""
    return "\n".join("\n".join(_printed).splitlines()[-_TAIL:])
