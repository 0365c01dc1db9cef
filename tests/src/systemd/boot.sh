# Starts systemd as process 1 of new namespaces: sh boot.sh DIR NAME, in a mount namespace of its own. NAME is
# its branch of the control groups, of which it then sees nothing else.
set -e
mount --make-rprivate /
mkdir "$1/cgroup"
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir "$1/cgroup/$2"
echo $$ >"$1/cgroup/$2/cgroup.procs"
umount "$1/cgroup"
exec unshare --cgroup --pid --mount --uts --ipc --net --fork --kill-child --mount-proc sh "$1/init.sh" "$1"
