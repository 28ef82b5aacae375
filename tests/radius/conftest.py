"""The lab of a test, and the logs of its programs where it fails."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.radius.lab import RadiusLab

#: Of no other run.
_numbers = itertools.count(os.getpid() * 1000)


@contextlib.contextmanager
def _made(where: Path, mode: str) -> Iterator[RadiusLab]:
    lab = RadiusLab(where, next(_numbers), mode)
    try:
        lab.build()
        yield lab
        lab.is_sound()
    finally:
        lab.close()


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RadiusLab]:
    """Namespaces without npppyd, which the test starts; the mode of pipex is the test's parameter."""
    with _made(tmp_path, getattr(request, "param", "ebpf")) as made:
        yield made


@pytest.fixture
def second(tmp_path: Path) -> Iterator[RadiusLab]:
    """Another one."""
    where = tmp_path / "second"
    where.mkdir()
    with _made(where, "ebpf") as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RadiusLab]:
    """One for all tests of a module."""
    with _made(tmp_path_factory.mktemp("lab"), "ebpf") as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, RadiusLab):
                report.sections += [(f"log of {name}", log[-20000:]) for name, log in value.logs()]
    return report
