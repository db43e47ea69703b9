# shellcheck shell=dash
# What jobs in the guest use. A job starts with:
#   #!/usr/bin/dash
#   . /job/guest/lib.sh
# It finds its disks as /dev/sut0… and /dev/raw0…, its input files in
# /job/inputs, the variables of --env set, and leaves what the host shall get
# in /results. Its exit status becomes run-guest's: 0, or 1 to 99.
# The real tools first; busybox has the rest.
export PATH=/usr/sbin:/usr/bin:/job/guest:/bin
# shellcheck source=/dev/null
. /job/env

# note TEXT: a line on the console and in the results.
note() { echo "sealblk-guest: [$(cut -d ' ' -f 1 /proc/uptime)] $*"; }

# fail TEXT: ends the job.
fail() {
    note "FAILED: $*"
    exit 1
}

# must COMMAND…: runs it; if it fails, the job has failed.
must() { "$@" || fail "'$*' ended with status $?"; }

# disk_at SLOT: the block device at that slot (decimal) of the PCI bus.
disk_at() {
    for block in "/sys/bus/pci/devices/0000:00:$(printf %02x "$1").0"/virtio*/block/*; do
        [ -e "$block" ] && echo "/dev/${block##*/}" && return
    done
    return 1
}

# sys_of DISK: its directory in /sys, for /dev/sut0 or what it points to.
sys_of() { echo "/sys/block/$(basename "$(readlink -f "$1")")"; }

# size_of DISK: in bytes.
size_of() { blockdev --getsize64 "$1"; }

# discards DISK: whether it offers discard.
discards() { [ "$(cat "$(sys_of "$1")/queue/discard_max_bytes")" -gt 0 ]; }

# forget DISK: writes back and drops what the guest has cached of it, so that
# the next read asks the disk.
forget() { must blockdev --flushbufs "$1"; }

# put_pattern DISK OFFSET LENGTH SEED: through the page cache, not yet flushed.
put_pattern() {
    pattern "$4" "$2" "$3" | dd of="$1" bs=1M seek="$2" oflag=seek_bytes iflag=fullblock conv=notrunc status=none ||
        fail "cannot write $3 bytes at $2 of $1"
}

# check_pattern DISK OFFSET LENGTH SEED: compares, and says where they differ.
check_pattern() {
    pattern "$4" "$2" "$3" | cmp -n "$3" - "$1" 0 "$2" >/tmp/cmp.out 2>&1 ||
        fail "$1 at $2: not pattern '$4': $(cat /tmp/cmp.out)"
}

# guest_reboot: like pressing reset; QEMU goes on running. Needs --allow-reboot.
guest_reboot() {
    note "rebooting"
    sync
    reboot -f
    sleep 60
}
