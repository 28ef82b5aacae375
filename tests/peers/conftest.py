"""The lab of a test, and the logs of its programs where it fails."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.peers.lab import Lab

_LAB = pytest.StashKey[Lab]()
_numbers = itertools.count()


@pytest.fixture(params=["user", "ebpf"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """Namespaces without npppyd, which the test starts.  A module says by LAB if it needs more than a plain one."""
    kind: type[Lab] = getattr(request.module, "LAB", Lab)
    lab = kind(tmp_path, next(_numbers), request.param)
    request.node.stash[_LAB] = lab
    try:
        lab.build()
        yield lab
        lab.is_sound()
    finally:
        lab.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and (lab := item.stash.get(_LAB, None)) is not None:
        report.sections += [(f"log of {name}", log) for name, log in lab.logs()]
    return report
