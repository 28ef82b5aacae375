#!/bin/sh
# Process 1 of the guest. It finds the host's file tree as its root, read-only, and the name of the run directory
# in npppy_run (from the kernel's command line). It starts twice: first on the bare tree, to put a tmpfs over it;
# then inside, to run the command of the run directory and to give its exit status back.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
run=$npppy_run

if [ "${1:-}" != inside ]; then
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/lower /mnt/upper /mnt/work /mnt/root
    mount --bind / /mnt/lower
    mount -t overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
    cd /mnt/root && pivot_root . mnt
    exec chroot . "$run/init.sh" inside
fi

mount -t proc proc /proc
umount -l /mnt
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 1777 /run/lock
mount -t sysfs sys /sys
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd

share() { # share TAG DIR: the host's DIR, writable, where the host has it
    case $kind in
    # Before Linux 6.12 the path was the whole option.
    uml) mount -t hostfs -o "hostfs=$2" none "$2" 2>/dev/null || mount -t hostfs -o "$2" none "$2" ;;
    # Without a cache, what is written here is at the host at once.
    *) mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none,access=any "$1" "$2" ;;
    esac
}
# Sets kind, modules (a directory, or nothing where all is built in) and load, and shares directories.
. "$run/conf"
: >"$run/up"

echo 4 >/proc/sys/kernel/printk
echo npppy-guest >/proc/sys/kernel/hostname
# New network namespaces without the fallback tunnel devices of a kernel that has everything built in.
echo 2 >/proc/sys/net/core/fb_tunnels_only_for_init_net
ulimit -Hn 524288
if [ -n "$modules" ]; then
    mkdir -p /lib/modules
    mount --bind "$modules" /lib/modules
    modprobe -a $load
fi
ip link set lo up

# Not in the background, where a shell would have the command ignore SIGINT.
sh "$run/command" </dev/null >"$run/out" 2>&1
echo $? >"$run/status"
sync
# Process 1 must not end, and can start nothing more once the devices are gone.
sleep 60 &
echo o >/proc/sysrq-trigger
wait
