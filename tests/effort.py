"""How much the tests do: `make test` some of it, so that it takes minutes, `make test-full` all."""

from __future__ import annotations

import os
from typing import Final

THOROUGH: Final = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def some(count: int, part: int) -> int:
    """Of *count* inputs the first *part*-th; in the long run all of them."""
    return count if THOROUGH else max(1, count // part)
