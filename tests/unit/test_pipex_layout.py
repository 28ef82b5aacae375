"""pipex.h in Python against the header, and against what the compiler made of it: the types (BTF) in pipex.o."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import OBJECT, Record, host4, net4, net6, pppoe_encapsulation, pppoe_key
from tests.unit.ippackets import words

HEADER = Path(OBJECT).with_name("pipex.h").read_text()

RECORDS = {
    "pipex_key": layout.KEY,
    "pipex_ref": layout.REF,
    "pipex_host4": layout.HOST4,
    "pipex_net4": layout.NET4,
    "pipex_net6": layout.NET6,
    "pipex_session": layout.SESSION,
    "pipex_stats": layout.STATS,
    "pipex_seq": layout.SEQ,
    "pipex_bucket": layout.BUCKET,
    "pipex_count": layout.COUNT_RECORD,
    "pipex_config": layout.CONFIG,
    "pipex_nic": layout.NIC,
    "pipex_event": layout.EVENT,
    "pipex_frame": layout.FRAME,
    "pipex_mppe": layout.MPPE_KEYS,
}

# linux/btf.h
INT, ARRAY, STRUCT, ENUM = 1, 3, 4, 6
EXTRA = {1: 4, 3: 12, 14: 4, 17: 4}
EACH = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


def elf_section(data: bytes, wanted: str) -> bytes:
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    sections = [struct.unpack_from("<IIQQQQ", data, offset + at * size) for at in range(count)]
    start = sections[names][4]
    for name, _, _, _, at, length in sections:
        text = data[start + name : data.index(b"\0", start + name)].decode()
        if text == wanted:
            return data[at : at + length]
    raise LookupError(wanted)


class Btf:
    """The structs and enums of an object, by name: offset of each member and the size of all; value by name."""

    def __init__(self, data: bytes) -> None:
        self.structs: dict[str, tuple[dict[str, int], int]] = {}
        self.enums: dict[str, dict[str, int]] = {}
        header, types, size, strings, _ = struct.unpack_from("<IIIII", data, 4)
        at, end = header + types, header + types + size

        def text(offset: int) -> str:
            start = header + strings + offset
            return data[start : data.index(b"\0", start)].decode()

        while at < end:
            name, info, length = struct.unpack_from("<III", data, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            at += 12
            items: list[Any] = [
                struct.unpack_from("<III" if kind == STRUCT else "<Ii", data, at + number * EACH[kind])
                for number in (range(count) if kind in (STRUCT, ENUM) else ())
            ]
            if kind == STRUCT:
                self.structs[text(name)] = {text(member): offset // 8 for member, _, offset in items}, length
            elif kind == ENUM:
                self.enums[text(name)] = {text(member): value for member, value in items}
            at += EXTRA.get(kind, 0) + count * EACH.get(kind, 0)


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf(elf_section(Path(OBJECT).read_bytes(), ".BTF"))


#: Of which the BTF knows nothing, since no variable has their type.
UNKNOWN = ("pipex_event", "pipex_frame")


@pytest.mark.parametrize("name", sorted(RECORDS.keys() - set(UNKNOWN)))
def test_members(btf: Btf, name: str) -> None:
    members, size = btf.structs[name]
    assert RECORDS[name].offsets == members
    assert RECORDS[name].size == size


@pytest.mark.parametrize("name", UNKNOWN)
def test_members_in_the_header(name: str) -> None:
    body = re.search(rf"^struct {name} \{{(.*?)^\}}", HEADER, re.DOTALL | re.MULTILINE)[1]
    body = re.sub(r"/\*.*?\*/", "", body)
    sizes = {"__u8": 1, "__u16": 2, "__be16": 2, "__u32": 4, "__u64": 8, "struct pipex_ref": 8}
    members = re.findall(r"(__\w+|struct \w+) (\w+);", body)
    assert len(members) == body.count(";")
    record, at = RECORDS[name], 0
    for kind, member in members:
        assert record.offsets[member] == at
        at += sizes[kind]
    assert (len(record.offsets), record.size) == (len(members), at)


def test_no_struct_is_left_out(btf: Btf) -> None:
    shared = set(re.findall(r"^struct (pipex_\w+) \{", HEADER, re.MULTILINE))
    assert shared == RECORDS.keys()


def test_numbers() -> None:
    """Of #define, which is not in the BTF."""
    defined = dict(re.findall(r"^#define PIPEX_(\w+)\s+(\(1u << \d+\)|0x\w+|\d+)", HEADER, re.MULTILINE))
    values = {name: eval(text.replace("u", "")) for name, text in defined.items()}
    assert values
    for name, value in values.items():
        assert getattr(layout, name) == value


def test_enums() -> None:
    """Some are nowhere in the BTF, since no variable has their type."""

    def members(enum: str) -> dict[str, int]:
        body = re.sub(r"/\*.*?\*/", "", re.search(rf"enum {enum} \{{(.*?)\}}", HEADER, re.DOTALL)[1], flags=re.DOTALL)
        found: dict[str, int] = {}
        for item in filter(None, (item.strip() for item in body.split(","))):
            name, _, value = item.partition("=")
            found[name.strip()] = int(value) if value else max(found.values(), default=-1) + 1
        return found

    counters = members("pipex_counter")
    assert counters.pop("PIPEX_C_MAX") >= len(counters)
    assert counters == {f"PIPEX_C_{name}": number for number, name in enumerate(layout.COUNTERS)}
    assert members("pipex_kind") == {
        "PIPEX_PPPOE": layout.PPPOE,
        "PIPEX_L2TP": layout.L2TP,
        "PIPEX_PPTP": layout.PPTP,
    }
    assert members("pipex_payload") == {
        "PIPEX_PPP": layout.PAYLOAD_PPP,
        "PIPEX_IP": layout.PAYLOAD_IP,
        "PIPEX_ETHERNET": layout.PAYLOAD_ETHERNET,
    }
    assert members("pipex_way") == {"PIPEX_UP": layout.UP, "PIPEX_DOWN": layout.DOWN}
    assert members("pipex_event_kind") == {"PIPEX_E_MIRROR": layout.EVENT_MIRROR}


def test_record_finds_members() -> None:
    record = Record("a:B b:3s c:I d:Q")
    assert record.offsets == {"a": 0, "b": 1, "c": 4, "d": 8}
    assert layout.fields(record, record.pack(1, b"xyz", 2, 3)) == {"a": 1, "b": b"xyz", "c": 2, "d": 3}


def test_times_are_where_stats_has_them() -> None:
    offsets = layout.STATS.offsets
    assert (offsets["active_ns"] + 8, layout.TIMES.size) == (offsets["heard_ns"], 16)


PEER, OURS = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"


def test_key() -> None:
    key = layout.fields(layout.KEY, pppoe_key(7, 100, 200, PEER, 0x1234))
    assert key == {
        "kind": 1,
        "zero": 0,
        "id": b"\x12\x34",
        "port": 7,
        "outer": 100,
        "inner": 200,
        "peer": PEER,
        "zero2": 0,
    }
    assert layout.fields(layout.KEY, pppoe_key(7, None, None, PEER, 1))["outer"] == 0


def test_addresses() -> None:
    assert layout.fields(layout.HOST4, host4(3, 0x0A000001)) == {"domain": 3, "address": b"\x0a\0\0\1"}
    assert layout.fields(layout.NET4, net4(3, 0x0A0001FF, 25)) == {
        "prefixlen": 57,
        "domain": 3,
        "address": b"\x0a\0\1\x80",
    }
    assert net4(0, 0x0A0001FF, 0) == struct.pack("=II4s", 32, 0, bytes(4))
    ones = b"\xff" * 16
    assert layout.fields(layout.NET6, net6(3, ones, 60)) == {
        "prefixlen": 92,
        "domain": 3,
        "address": b"\xff" * 7 + b"\xf0" + bytes(8),
    }
    assert net6(0, ones, 0) == struct.pack("=II16s", 32, 0, bytes(16))
    assert net6(0, ones, 128) == struct.pack("=II16s", 160, 0, ones)


def test_room_for_every_carrier() -> None:
    """The longest header there is, and map values of no more than a few cache lines."""
    ethernet, tags, outer, udp, l2tp, hdlc = 14, 8, 40, 8, 12, 2
    assert ethernet + tags + outer + udp + l2tp + hdlc <= layout.ENCAP_MAX
    assert layout.SESSION.size == 192


@pytest.mark.parametrize(
    ("outer", "inner", "tags"),
    [
        (None, None, b""),
        (5, None, b"\x81\x00\x00\x05"),
        (5, 4094, b"\x88\xa8\x00\x05\x81\x00\x0f\xfe"),
    ],
)
def test_encapsulation(outer: int | None, inner: int | None, tags: bytes) -> None:
    octets, length_at = pppoe_encapsulation(outer, inner, OURS, PEER, 0x1234)
    assert octets == PEER + OURS + tags + b"\x88\x64\x11\x00\x12\x34\0\0"
    assert octets[length_at:] == b"\0\0"
    assert len(octets) <= layout.ENCAP_MAX



def test_encapsulation_as_devices_have_it() -> None:
    """Whatever EtherTypes the VLAN devices use."""
    for protocols, tags in (((0x88A8,), b"\x88\xa8\0\5"), ((0x8100, 0x8100), b"\x81\0\0\5\x81\0\0\x09")):
        octets, length_at = pppoe_encapsulation(5, 9 if len(tags) > 4 else None, OURS, PEER, 1, protocols)
        assert octets == PEER + OURS + tags + b"\x88\x64\x11\0\0\1\0\0"
        assert length_at == len(octets) - 2


@pytest.mark.parametrize(("outer", "inner"), [(None, None), (7, None), (100, 4094)])
def test_the_key_is_found_again(outer: int | None, inner: int | None) -> None:
    """In what a slot has."""
    peer = b"\x02\0\0\xff\xfe\x02"
    header, length_at = pppoe_encapsulation(outer, inner, b"\x02\0\0\0\0\x01", peer, 0xFFFE)
    values: dict[str, Any] = {
        "ifindex": 77, "encap_len": len(header), "length_at": length_at, "encap": header, "generation": 9
    }
    blank = layout.fields(layout.SESSION, bytes(layout.SESSION.size))
    session = layout.SESSION.pack(*(blank | values).values())
    assert layout.key_of(session) == pppoe_key(77, outer, inner, peer, 0xFFFE)


#: Of l2tp_encapsulation: MAC addresses of npx1 and npx0; local address and port, the peer's, and the peer's ids.
NPX = (b"\x02npx\0\1", b"\x02npx\0\0")
ENDS4 = (bytes((192, 0, 2, 1)), 1701, bytes((203, 0, 113, 5)), 40001)
ENDS6 = (b"\x20\x01" + bytes(13) + b"\1", 1701, b"\x20\x01" + bytes(13) + b"\xff", 40001)
IDS = (0x0102, 0x0304)


@pytest.mark.parametrize("sequenced", [False, True])
def test_l2tp_encapsulation(sequenced: bool) -> None:
    """Sums of what does not vary, where the checksums go."""
    made = layout.l2tp_encapsulation(*NPX, *ENDS4, *IDS, sequenced)
    ip, udp, l2tp = made.octets[14:34], made.octets[34:42], made.octets[42:]
    assert made.octets[:14] == b"".join(NPX) + b"\x08\0"
    assert ip[:10] == bytes((0x45, 0, 0, 0, 0, 0, 0, 0, 65, 17))
    assert ip[12:] == ENDS4[0] + ENDS4[2]
    assert int.from_bytes(ip[10:12], "big") == words(ip[:10] + b"\0\0" + ip[12:])
    assert udp == struct.pack(">HHHH", 1701, 40001, 0, 0)
    assert l2tp == struct.pack(">HHHH", 0x4802 if sequenced else 0x4002, 0, *IDS) + bytes(4 * sequenced) + b"\xff\x03"
    assert made[1:] == (44, 14, 50 if sequenced else 0, 0)
    made = layout.l2tp_encapsulation(*NPX, *ENDS4, *IDS, sequenced, checksum=True)
    assert int.from_bytes(made.octets[40:42], "big") == words(ENDS4[0] + ENDS4[2] + bytes((0, 17)))
    assert made[1:] == (44, 14, 50 if sequenced else 0, layout.CHECKSUM)


@pytest.mark.parametrize("sequenced", [False, True])
@pytest.mark.parametrize("checksum", [False, True])
def test_l2tp_encapsulation6(sequenced: bool, checksum: bool) -> None:
    made = layout.l2tp_encapsulation(*NPX, *ENDS6, *IDS, sequenced, checksum)
    ip, udp, l2tp = made.octets[14:54], made.octets[54:62], made.octets[62:]
    assert made.octets[:14] == b"".join(NPX) + b"\x86\xdd"
    assert ip == bytes((0x60, 0, 0, 0, 0, 0, 17, 65)) + ENDS6[0] + ENDS6[2]
    assert udp == struct.pack(">HHHH", 1701, 40001, 0, words(ENDS6[0] + ENDS6[2] + bytes((0, 17))))
    assert l2tp == struct.pack(">HHHH", 0x4802 if sequenced else 0x4002, 0, *IDS) + bytes(4 * sequenced) + b"\xff\x03"
    assert made[1:] == (64, 14, 70 if sequenced else 0, layout.CHECKSUM)


def test_l2tp_key() -> None:
    key = layout.fields(layout.KEY, layout.l2tp_key(0xFEDC, 0x1234))
    assert {name: value for name, value in key.items() if value not in (0, bytes(6))} == {
        "kind": layout.L2TP,
        "id": b"\x12\x34",
        "port": 0xFEDC,
    }


def test_the_key_of_l2tp_is_found_again() -> None:
    values = {"kind": layout.L2TP, "encap": layout.l2tp_encapsulation(*NPX, *ENDS4, *IDS).octets}
    values |= {"key_port": 0xFEDC, "key_id": b"\x12\x34"}
    blank = layout.fields(layout.SESSION, bytes(layout.SESSION.size))
    assert layout.key_of(layout.SESSION.pack(*(blank | values).values())) == layout.l2tp_key(0xFEDC, 0x1234)


def test_pptp_encapsulation() -> None:
    made = layout.pptp_encapsulation(*NPX, ENDS4[0], ENDS4[2], 0x0304)
    ip, gre = made.octets[14:34], made.octets[34:]
    assert made.octets[:14] == b"".join(NPX) + b"\x08\0"
    assert ip[:10] == bytes((0x45, 0, 0, 0, 0, 0, 0, 0, 65, 47))
    assert ip[12:] == ENDS4[0] + ENDS4[2]
    assert int.from_bytes(ip[10:12], "big") == words(ip[:10] + b"\0\0" + ip[12:])
    assert gre == struct.pack(">HHHHII", 0x3081, 0x880B, 0, 0x0304, 0, 0) + b"\xff\x03"
    assert made[1:] == (38, 14, 42, 0)


def test_pptp_key() -> None:
    key = layout.fields(layout.KEY, layout.pptp_key(0x1234))
    assert {name: value for name, value in key.items() if value not in (0, bytes(6))} == {
        "kind": layout.PPTP,
        "id": b"\x12\x34",
    }
    values = {"kind": layout.PPTP, "encap": layout.pptp_encapsulation(*NPX, ENDS4[0], ENDS4[2], 7).octets}
    blank = layout.fields(layout.SESSION, bytes(layout.SESSION.size))
    session = layout.SESSION.pack(*(blank | values | {"key_id": b"\x12\x34"}).values())
    assert layout.key_of(session) == layout.pptp_key(0x1234)


def test_inject() -> None:
    assert layout.inject(3, 9, b"\xc0\x21frame") == struct.pack("=II", 3, 9) + b"\0\7\0\0\xc0\x21frame"
    assert layout.inject(3, 9, b"") == struct.pack("=II", 3, 9) + bytes(4)
