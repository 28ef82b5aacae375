"""npppy: a PPP concentrator for Linux in the manner of OpenBSD's npppd."""

__version__ = "0.1.0"
