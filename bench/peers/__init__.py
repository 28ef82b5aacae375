"""``make bench-peers``: npppyd beside Debian's l2tpns, under the same load."""
