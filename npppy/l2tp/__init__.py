"""L2TPv2 (RFC 2661)."""
