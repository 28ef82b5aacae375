#!/bin/busybox sh
# The init of QEMU's initramfs: the modules that reach the host's file tree, then over to it.
b=/bin/busybox
$b mkdir -p /host
for m in /modules/*.ko; do
    $b insmod "$m"
done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any,ro root /host
exec $b switch_root /host "$npppy_run/init.sh"
