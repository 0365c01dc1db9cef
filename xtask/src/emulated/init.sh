# The user space of the emulated host: runs one command on the tree of the real host.
# The tag "host" is the whole tree; the tag "run" is the directory through which we talk: command.sh, where (its path on
# the host) and limit come in; stdout, stderr and exit go out. "run" is not cached, so that output is seen at once.

nine() { mount -t 9p -o "trans=virtio,version=9p2000.L,msize=524288,$3" "$1" "$2"; }
mkdir /host /run
nine host /host cache=loose || echo "cannot mount the tree of the host"
nine run /run cache=none || echo "cannot mount the directory of this run"
where=$(cat /run/where)

mount -t proc proc /host/proc
mount -t sysfs sys /host/sys
mount -t devtmpfs dev /host/dev
mkdir -p /host/dev/pts /host/dev/shm
mount -t devpts -o ptmxmode=666 devpts /host/dev/pts
# Unix sockets and FIFOs belong to one kernel: where they are made must not be on the shared tree.
for directory in /dev/shm /run "$where/tmp"; do mount -t tmpfs tmpfs "/host$directory"; done
ip link set lo up
ulimit -l unlimited
ulimit -n 65536

# The command gets pipes, as it would from a shell: it may open /dev/stdout again, and seek nowhere.
mkfifo /tmp/stdout /tmp/stderr
cat /tmp/stdout >/run/stdout & stdout=$!
cat /tmp/stderr >/run/stderr & stderr=$!
chroot /host /bin/sh "$where/command.sh" </dev/null >/tmp/stdout 2>/tmp/stderr
code=$?

# A process that the command left behind may hold the pipes open: do not wait for it long.
tries=0
while kill -0 $stdout 2>/dev/null || kill -0 $stderr 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -gt 40 ] && break
    usleep 50000
done
sync
echo $code >/run/exit
poweroff -f
