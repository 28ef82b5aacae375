"""PPTP (RFC 2637)."""
