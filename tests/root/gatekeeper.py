"""Admission at a test's word."""

from __future__ import annotations

from npppy.admission import LAG, MANY, PLENTY, TRICKLE, Admission


class Gatekeeper:
    admission: Admission

    def shut(self) -> None:
        """Nothing may begin."""
        # Half of what has begun before, and half of nothing.
        self.admission.tick(2 * LAG, PLENTY)
        self.admission.tick(2 * LAG, PLENTY)
        self.admission.took(TRICKLE)

    def open(self) -> None:
        # Twice as many may begin each time, in the end all.
        for _ in range(MANY.bit_length()):
            self.admission.tick(0.0, PLENTY)
