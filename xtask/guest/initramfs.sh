#!/bin/busybox sh
# First program of a test guest: loads modules, puts a writable layer in memory over the read-only root, goes on there.
set -e
export PATH=/bin
/bin/busybox --install -s /bin
trap 'echo "initramfs: failed" >/dev/console; sleep 1; poweroff -f' EXIT
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module"; done </modules/order
for word in $(cat /proc/cmdline); do
    case $word in
    guard.init=*) init=${word#*=} ;;
    esac
done
mkdir -p /ro /rw /new
mount -t erofs -o ro /dev/vda /ro
mount -t tmpfs -o mode=755,size=80% rw /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work root /new
mkdir -p /new/usr/lib/modules
mount -t erofs -o ro /dev/vdb /new/usr/lib/modules
# containers need a layer that is no overlay itself
mkdir -p /new/var/lib/containers
mount -t tmpfs containers /new/var/lib/containers
mkdir -p /new/usr/lib/guard-vm
cp -a /support/. /new/
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    ip route add default via 10.0.2.2
fi
mount --move /dev /new/dev
mount --move /proc /new/proc
mount --move /sys /new/sys
trap - EXIT
exec switch_root /new "$init"
