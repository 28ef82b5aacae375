"""What npppyctl prints: npppctl's text, to the column, or JSON lines."""

from __future__ import annotations

import json
import sys
import time

from ..text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

    from .client import Answer
    from .protocol import Message

BAR = "-" * 72

BRIEF = (
    "Ppp Id     Assigned IPv4   Username             Proto Tunnel From\n"
    "---------- --------------- -------------------- ----- -------------------------"
)
BRIEF_COLUMNS = ("ppp_id", "address", "username", "protocol", "tunnel_from")
# npppctl spells it "Ppd Id".
PACKETS = (
    "Ppp Id     Username             In(Kbytes/pkts/errs)    Out(Kbytes/pkts/errs)\n"
    "---------- -------------------- ----------------------- -----------------------"
)
PACKETS_COLUMNS = (
    "ppp_id", "username", "in_bytes", "in_packets", "in_errors", "out_bytes", "out_packets", "out_errors"
)  # fmt: skip

TUNNELS = (
    "Id         Peer  Proto State            Sessions Peer                      Host Name\n"
    "---------- ----- ----- ---------------- -------- ------------------------- -------------------------"
)


def brief(answer: Answer, out: TextIO) -> None:
    title = f"{BRIEF}\n"
    for rows in answer:
        for row in rows:
            # A half-open session may have neither address nor name; a column that is empty would shift the others.
            address = row["address"] or "0.0.0.0"
            username = printable(row["username"]) or "-"
            out.write(
                f"{title}{row['ppp_id']:10d} {address:<15} {username:<20} {row['protocol']:<5} "
                f"{printable(row['tunnel_from'])}\n"
            )
            title = ""


def packets(answer: Answer, out: TextIO) -> None:
    title = f"{PACKETS}\n"
    for rows in answer:
        for row in rows:
            out.write(
                f"{title}{row['ppp_id']:10d} {printable(row['username']) or '-':<20} "
                f"{row['in_bytes'] / 1024:9.1f} {row['in_packets']:7d} {row['in_errors']:5d} "
                f"{row['out_bytes'] / 1024:9.1f} {row['out_packets']:7d} {row['out_errors']:5d}\n"
            )
            title = ""


def details(answer: Answer, out: TextIO) -> None:
    between = ""
    for rows in answer:
        for row in rows:
            out.write(between + block(row))
            between = "\n"


def block(row: Message) -> str:
    """A session as ``session all`` and ``monitor`` show it."""
    lines = [
        ("Ppp Id", row["ppp_id"]),
        ("Username", printable(row["username"])),
        ("Realm Name", printable(row["realm"])),
        ("Concentrated Interface", printable(row["interface"])),
        ("Assigned IPv4 Address", row["address"] or "0.0.0.0"),
        ("MRU", row["mru"]),
        ("Tunnel Protocol", row["protocol"]),
        ("Tunnel From", printable(row["tunnel_from"])),
        ("Start Time", time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(row["start"]))),
        ("Elapsed Time", elapsed(int(row["duration"]))),
        ("Input Bytes", octets(row["in_bytes"])),
        ("Input Packets", row["in_packets"]),
        ("Input Errors", errors(row["in_errors"], row["in_packets"])),
        ("Output Bytes", octets(row["out_bytes"])),
        ("Output Packets", row["out_packets"]),
        ("Output Errors", errors(row["out_errors"], row["out_packets"])),
    ]
    if "tunnel_id" in row:
        theirs = f", peer's {row['peer_tunnel_id']}" if "peer_tunnel_id" in row else ""
        lines.append(("Tunnel Id", f"{row['tunnel_id']}{theirs}"))
        lines.append(("Session Id", f"{row['session_id']}, peer's {row['peer_session_id']}"))
    lines += [
        (f"{which.title()} Number", printable(row[f"{which}_number"]))
        for which in ("calling", "called")
        if f"{which}_number" in row
    ]
    if "mppe_in" in row:
        lines.append(("MPPE", f"in {row['mppe_in']}; out {row['mppe_out']}"))
    if "acct_session_id" in row:
        lines.append(("Acct-Session-Id", row["acct_session_id"]))
    lines += [("Framed-Route", route) for route in row.get("routes", ())]
    if "filter_id" in row:
        lines.append(("Filter-Id", printable(row["filter_id"])))
    for name, title in (("session_timeout", "Session Timeout"), ("idle_timeout", "Idle Timeout")):
        if name in row:
            lines.append((title, elapsed(row[name]).rstrip()))
    if row["state"] not in ("up", "terminate"):
        # npppd shows no such session, so its text has no line for this.
        lines.append(("State", row["state"]))
    if row["pipex"]:
        lines.append(("Carried By", _CARRIERS[row["pipex"]]))
        lines += [
            (f"Rate Limit {way.title()}", limit(row[f"rate_{way}"], row[f"burst_{way}"]))
            for way in ("down", "up")
            if row[f"rate_{way}"]
        ]
    return f"Ppp Id = {row['ppp_id']}\n{_indented(lines)}"


def _indented(lines: list[tuple[str, Any]]) -> str:
    return "".join(f"          {label:<24}: {value}\n" for label, value in lines)


def elapsed(seconds: int) -> str:
    """Below a minute a space is left at the end, as npppctl leaves it."""
    hours, minutes = seconds // 3600, seconds // 60 % 60
    words = " and ".join(plural(count, unit) for count, unit in ((hours, "hour"), (minutes, "minute")) if count)
    return f"{seconds} sec {f'({words})' if words else ''}"


def plural(count: int, unit: str) -> str:
    return f"{count} {unit}{'s' if count > 1 else ''}"


def octets(count: int) -> str:
    # From 1000 of the smaller unit on, but the units are of 1024.
    for power, unit in ((3, "GB"), (2, "MB"), (1, "KB")):
        if count >= 1000 * 1024 ** (power - 1):
            return f"{count} ({count / 1024**power:.1f} {unit})"
    return str(count)


def errors(count: int, packets: int) -> str:
    return f"{count} ({100 * count / (packets + count) if count else 0:.1f}%)"


def cleared(answer: Answer, out: TextIO) -> None:
    for _ in answer:
        pass
    if "tunnels" in answer.done:
        tunnels, sessions = answer.done["tunnels"], answer.done["sessions"]
        what = f"{plural(tunnels, 'tunnel')} with {plural(sessions, 'session') if sessions else 'no session'}"
        out.write(f"Successfully disconnected {what}.\n" if tunnels else "No tunnel to disconnect.\n")
        return
    done, failed = answer.done["disconnected"], answer.done["failed"]
    if done:
        out.write(f"Successfully disconnected {plural(done, 'session')}.\n")
    if failed:
        out.write(f"Failed to disconnect {plural(failed, 'session')}.\n")
    if not done and not failed:
        out.write("No session to disconnect.\n")


def tunnel_brief(answer: Answer, out: TextIO) -> None:
    title = f"{TUNNELS}\n"
    for rows in answer:
        for row in rows:
            out.write(
                f"{title}{row['tunnel_id']:10d} {row.get('peer_tunnel_id', '-'):>5} {row['protocol']:<5} "
                f"{row['state']:<16} {row['sessions']:8d} {row['peer']:<25} {printable(row['peer_name']) or '-'}\n"
            )
            title = ""


def tunnel_details(answer: Answer, out: TextIO) -> None:
    between = ""
    for rows in answer:
        for row in rows:
            out.write(between + _tunnel(row))
            between = "\n"


#: What only some tunnels have, by the field of the row.
_TUNNEL = {
    "window": "Peer's Window",
    "cwnd": "Congestion Window",
    "queued": "Queued Messages",
    "retransmissions": "Retransmissions",
    "next_ns": "Next Ns",
    "next_nr": "Next Nr",
}


def _tunnel(row: Message) -> str:
    lines = [("Tunnel Id", row["tunnel_id"])]
    if "peer_tunnel_id" in row:
        lines.append(("Peer's Tunnel Id", row["peer_tunnel_id"]))
    lines += [
        ("Tunnel Name", printable(row["tunnel"])),
        ("Tunnel Protocol", row["protocol"]),
        ("State", row["state"]),
        ("Peer", row["peer"]),
        ("Peer's Host Name", printable(row["peer_name"])),
    ]
    if "peer_vendor" in row:
        lines.append(("Peer's Vendor Name", printable(row["peer_vendor"])))
    lines += [
        ("Local Address", row["local"]),
        ("Start Time", time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(row["start"]))),
        ("Elapsed Time", elapsed(int(row["duration"]))),
        ("Sessions", row["sessions"]),
    ]
    lines += [(label, row[name]) for name, label in _TUNNEL.items() if name in row]
    if row.get("mark"):
        lines.append(("Mark of its SA", row["mark"]))
    if row.get("echo_pending"):
        lines.append(("Echo-Request", "not answered yet"))
    return f"Tunnel Id = {row['tunnel_id']}\n{_indented(lines)}"


def events(answer: Answer, out: TextIO) -> None:
    for rows in answer:
        for row in rows:
            if row["event"] == "lost":
                print(f"npppyctl: too slow: {plural(row['count'], 'event')} lost", file=sys.stderr)
            else:
                title = {"start": "Started", "stop": "Stopped"}[row["event"]]
                out.write(f"PPP {title}\n{BAR}\n{block(row)}{BAR}\n")
        out.flush()


def daemon(answer: Answer, out: TextIO) -> None:
    for _ in answer:
        pass
    for label, value in answer.done.items():
        if isinstance(value, dict):
            out.write(f"{label}:\n")
            for name, inner in value.items():
                shown = ", ".join(f"{k}={v}" for k, v in inner.items()) if isinstance(inner, dict) else inner
                out.write(f"    {printable(name)}: {shown}\n")
        else:
            out.write(f"{label}: {value}\n")


#: Who carries the data of a session.
_CARRIERS = {"ebpf": "the kernel", "user": "Python"}


def limit(rate: int, burst: int) -> str:
    """A rate in bits a second and a burst in octets."""
    if not rate:
        return "no limit"
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if rate >= size and rate % (size // 1000) == 0:
            shown = f"{rate / size:.3f}".rstrip("0").rstrip(".")
            return f"{shown} {unit}bit/s, burst {burst}"
    return f"{rate} bit/s, burst {burst}"


def pipex(answer: Answer, out: TextIO) -> None:
    for _ in answer:
        pass
    done = answer.done
    if "ppp_id" in done:
        limits = "; ".join(f"{way} {limit(done[f'rate_{way}'], done[f'burst_{way}'])}" for way in ("down", "up"))
        out.write(f"ppp id {done['ppp_id']}: carried by {_CARRIERS[done['pipex']]}; {limits}\n")
        return
    reason = f": {printable(done['reason'])}" if done["reason"] else ""
    out.write(f"Back end: {done['backend']}{reason}\n")
    sessions = done["sessions"]
    room = f", room for {done['capacity']}" if done["capacity"] else ""
    out.write(f"Sessions: {sessions['ebpf']} carried by the kernel{room}, {sessions['user']} by Python\n")
    for name, tunnel in done["tunnels"].items():
        out.write(f"Tunnel {printable(name)}: pipex {tunnel['pipex']}, forward {tunnel['forward']}\n")
    _table(
        out,
        ("Interface", "Use", "XDP", ""),
        [(row["name"], row["use"], row["xdp"] or "-", printable(row["note"])) for row in done["interfaces"]],
    )
    _table(
        out,
        ("Path", "Up pkts", "Up octets", "Down pkts", "Down octets"),
        [
            (path, *(way[what] for way in (ways["up"], ways["down"]) for what in ("packets", "octets")))
            for path, ways in done["paths"].items()
        ],
    )
    for title, counts in (("Left to Python", "punts"), ("Dropped", "drops"), ("Other", "other")):
        rows = [(name, count["packets"], count["octets"]) for name, count in done[counts].items() if count["packets"]]
        _table(out, (title, "Packets", "Octets"), rows)
    maps = [(name, item["used"], item["entries"], item["octets"]) for name, item in done["maps"].items()]
    if maps:
        _table(out, ("Map", "Used", "of", "Octets"), [*maps, ("all", "", "", done["memory"])])


def radius(answer: Answer, out: TextIO) -> None:
    found: dict[str, list[Message]] = {"server": [], "records": [], "client": []}
    for rows in answer:
        for row in rows:
            found[row["what"]].append(row)
    done = answer.done
    for row in (*found["server"], *found["client"]):
        row["name"] = row["address"] if "port" not in row else _place(row["address"], row["port"])
    _table(
        out,
        ("Server", "For", "State", "Since", "RTT ms", "Last", "Requests", "Again", "Lost", "Sent", "Queue"),
        [
            (
                row["name"],
                row["kind"],
                row["state"],
                time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(row["since"])) if row["since"] else "-",
                round(row["rtt_ms"], 1),
                round(row["last_rtt_ms"], 1),
                row["requests"],
                row["retransmissions"],
                row["timeouts"],
                row["outstanding"],
                row["queued"],
            )
            for row in found["server"]
        ],
        between=False,
    )
    replies = ("answers", "accepts", "rejects", "challenges")
    _table(
        out,
        ("Server", "For", "Answers", "Accepts", "Rejects", "Challenges", "Not counted"),
        [
            (*(row[field] for field in ("name", "kind", *replies)), _counts(row["bad"]))
            for row in found["server"]
        ],
    )
    if found["server"]:
        out.write("\n")
    where = printable(done["spool"]) or "in memory"
    oldest = f", the oldest for {elapsed(done['oldest']).rstrip()}" if done["records"] else ""
    out.write(f"Spool: {where}, records that wait: {done['records']}{oldest}\n")
    if done["delivered"] or done["failures"]:
        replaced = f", replaced by later ones: {done['replaced']}" if done["replaced"] else ""
        out.write(f"Delivered: {done['delivered']}, attempts in vain: {done['failures']}{replaced}\n")
    if done["trouble"]:
        out.write(f"It cannot be written: {printable(done['trouble'])}\n")
    _table(
        out,
        ("Realm", "Records", "Note"),
        [
            (printable(row["realm"]), row["records"], "it has no server any more" if row["orphaned"] else "-")
            for row in found["records"]
        ],
    )
    if found["records"]:
        out.write("\n")
    lost = f", answers not sent: {_counts(done['lost'])}" if done["lost"] else ""
    listen = ", ".join(done["listen"]) or "nowhere"
    out.write(f"Dynamic authorization: listening {listen}, packets from strangers: {done['strangers']}{lost}\n")
    counters = ("disconnects", "disconnect_acks", "disconnect_naks", "changes", "change_acks", "change_naks")
    _table(
        out,
        ("Client", "Disconnect", "ACK", "NAK", "CoA", "ACK", "NAK", "Repeated", "Waiting", "Errors", "Discarded"),
        [
            (
                row["name"],
                *(row[name] for name in (*counters, "duplicates", "waiting")),
                _counts(row["errors"]),
                _counts(row["discarded"]),
            )
            for row in found["client"]
        ],
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{printable(name)}={count}" for name, count in counts.items()) or "-"


def _place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _table(out: TextIO, titles: tuple[str, ...], rows: list[tuple[Any, ...]], *, between: bool = True) -> None:
    """Columns as wide as they must be, numbers to the right; nothing at all without rows.

    *between*: with an empty line before.
    """
    if not rows:
        return
    shown = [tuple("-" if cell is None else str(cell) for cell in row) for row in (titles, *rows)]
    numbers = [
        all(cell in ("", None) or isinstance(cell, int | float) for cell in cells) for cells in zip(*rows, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    if between:
        out.write("\n")
    for row in shown:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numbers, strict=True)
        )
        out.write("  ".join(cells).rstrip() + "\n")


def json_lines(answer: Answer, out: TextIO) -> None:
    """A line for each row, and one for the result where the command has one."""
    for rows in answer:
        for row in rows:
            out.write(json_line(row))
        out.flush()
    if answer.done:
        out.write(json_line(answer.done))


def json_line(row: dict[str, Any]) -> str:
    text = json.dumps(row)
    if "\\ud" in text:
        # Octets that are not UTF-8 are lone surrogates here, which strict readers of JSON refuse: "?" for each.
        text = json.dumps(json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")))
    return f"{text}\n"
