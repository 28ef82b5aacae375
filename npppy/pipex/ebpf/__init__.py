"""pipex's back end ``ebpf``: sessions carried by programs in the kernel, over one pair of veth devices an interface."""
