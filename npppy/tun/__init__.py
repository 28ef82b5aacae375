"""The tun device that sessions share, and what is asked of the kernel's netlink."""
