"""npppd.conf: its grammar, its typed model and its loader."""
