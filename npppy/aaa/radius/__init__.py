"""RADIUS: authentication, accounting and dynamic authorization (RFC 2865, 2866, 5176)."""
