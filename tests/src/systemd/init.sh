# Process 1 before it is systemd: sh init.sh DIR. What it will see is this host's files, with our programs in /usr/bin,
# where they can be replaced, and an /etc that can be written to; of all units only ours and the journal; no device.
set -e
own=$1
mkdir "$own/changes"
mount -t tmpfs tmpfs "$own/changes"
over() { # DIR LOWER: the directory is that one, and can be written to
    mkdir -p "$own/changes$1/upper" "$own/changes$1/work"
    mount -t overlay overlay -o "lowerdir=$2,upperdir=$own/changes$1/upper,workdir=$own/changes$1/work" "$1"
}
over /usr/bin "$own/bin:/usr/bin"
over /etc /etc
for dir in /run /var/lib /var/log; do mount -t tmpfs -o mode=755 tmpfs $dir; done
# What systemd makes in /tmp and /var/tmp for each start of a unit would stay on this host. Our own directory may lie there.
mkdir /run/own
mount --rbind "$own" /run/own
for dir in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $dir; done
mkdir -p "$own"
mount --move /run/own "$own"
rmdir /run/own

mkdir /run/dev
mount -t tmpfs -o mode=755 tmpfs /run/dev
for node in null zero full random urandom tty; do
    touch /run/dev/$node
    mount --bind /dev/$node /run/dev/$node
done
mkdir /run/dev/pts /run/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts /run/dev/pts
ln -s pts/ptmx /run/dev/ptmx
ln -s /proc/self/fd /run/dev/fd
mount --move /run/dev /dev

units=/run/systemd/system
mkdir -p $units /run/log/journal
cp "$own"/units/* $units
cp /lib/systemd/system/systemd-journald.service /lib/systemd/system/systemd-journald*.socket $units
rm -f $units/systemd-journald-audit.socket
for target in sysinit basic sockets shutdown; do printf '[Unit]\nDefaultDependencies=no\n' >$units/$target.target; done
echo 'Wants=systemd-journald.socket systemd-journald-dev-log.socket' >>$units/sysinit.target
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n' >/etc/systemd/journald.conf

mount -t cgroup2 cgroup2 /sys/fs/cgroup
# Settings of the kernel belong to everybody.
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=outboard SYSTEMD_UNIT_PATH=$units NOTIFY_SOCKET="$own/ready" \
    /lib/systemd/systemd --system --unit=basic.target --show-status=no --log-target=journal
