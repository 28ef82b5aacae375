"""Which tests can run here, and what becomes of those that cannot.

`root` tests need root and network namespaces; `guest` tests run inside a kernel that has PPP (tests/guest), where
NPPPY_GUEST says of which kind it is. Elsewhere they are skipped with the reason. With NPPPY_REQUIRE_ALL set, as in CI,
such a skip is a failure: a suite that silently shrank proves nothing.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import zlib
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

REQUIRE_ALL = bool(os.environ.get("NPPPY_REQUIRE_ALL"))
GUEST = os.environ.get("NPPPY_GUEST", "")
#: Which share of the tests this process has (tests/suites.py): "2/3" is the second of three.
SHARE, SHARES = (int(number) for number in os.environ.get("NPPPY_SHARE", "1/1").split("/"))
#: Of which suite; empty: any tests.
SUITE = os.environ.get("NPPPY_SUITE", "")
ALL_OF_A_FILE = re.compile(r"^pytestmark = .*\bmark\.(root|guest)\b", re.MULTILINE)

# No timing assertions anywhere; the same inputs every time, but for the long run, which looks for new ones.
settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=2000)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
settings.load_profile(PROFILE)


@functools.cache
def _no_root() -> str:
    """Why tests that need root cannot run here; empty if they can."""
    if os.geteuid():
        return "needs root"
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return f"needs network namespaces: {made.stderr.strip()}" if made.returncode else ""


@functools.cache
def _marked(path: Path) -> frozenset[str]:
    """By which marks a file's text names other suites than plain."""
    text = path.read_text()
    return frozenset(mark for mark in ("root", "guest") if f"mark.{mark}" in text)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """To read all tests takes half a minute of a processor, in each share, and longer in a guest."""
    if not SUITE or not collection_path.name.startswith("test_"):
        return None
    if SUITE == "plain":
        others = ALL_OF_A_FILE.search(collection_path.read_text()) is not None
    else:
        others = SUITE not in _marked(collection_path)
    return True if others else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        for mark in ("root", "guest"):
            if item.get_closest_marker(mark) and mark not in _marked(item.path):
                raise pytest.UsageError(f"{item.nodeid}: suite {mark} looks only where mark.{mark} stands")
        if zlib.crc32(item.nodeid.encode()) % SHARES != SHARE - 1:
            left.append(item)
            continue
        if item.get_closest_marker("long") and PROFILE != "thorough":
            left.append(item)
            continue
        if item.get_closest_marker("guest"):
            # An emulated processor is 10 to 20 times slower: the short subset, unless all is asked for.
            if GUEST == "tcg" and not item.get_closest_marker("tcg") and not os.environ.get("NPPPY_GUEST_ALL"):
                left.append(item)
                continue
            if not GUEST:
                item.add_marker(pytest.mark.skip(reason="needs a kernel with PPP: make test-guest"))
        elif item.get_closest_marker("root") and (reason := _no_root()):
            item.add_marker(pytest.mark.skip(reason=reason))
        kept.append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marked = item.get_closest_marker("root") or item.get_closest_marker("guest")
    if REQUIRE_ALL and marked and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and NPPPY_REQUIRE_ALL is set: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole module that skips itself has no markers to look at: none may."""
    report = yield
    if REQUIRE_ALL and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, and NPPPY_REQUIRE_ALL is set: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
