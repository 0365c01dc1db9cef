# The guest's side of the demo. It speaks over its virtio console, one line a step, and ends by powering off:
# the host (conversation.rs) says the same lines from the other side.
exec </dev/hvc0 >/dev/hvc0 2>&1
stty raw -echo
echo "init $(cut -d ' ' -f 1 /proc/uptime)"
read -r nonce
echo "pong $nonce"
seq 1 "$LINES_TO_SAY" | cat
random=$(dd if=/dev/hwrng bs="$RANDOM_BYTES" count=1 2>/dev/null | od -A n -v -t x1 | tr -d ' \n')
echo "random $(cat /sys/class/misc/hw_random/rng_current) $random"
echo "disk $(blockdev --getsize64 /dev/vda) $(sha256sum </dev/vda | cut -d ' ' -f 1)"
read -r nonce
yes "$nonce" | head -c "$PATTERN_BYTES" | dd of=/dev/vda bs=64k seek="$PATTERN_AT" oflag=seek_bytes conv=fsync,notrunc 2>/dev/null
echo "written $?"
poweroff -f
