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

# open_dm_crypt [--readonly]: $RAW as /dev/mapper/plain, with the inputs and
# variables that the job dm-crypt-read describes.
open_dm_crypt() {
    raw=${RAW:-/dev/raw0} dek=/job/inputs/${DEK:-dek} header=/job/inputs/${HEADER:-header}
    for module in dm-crypt xts aesni-intel aes_generic; do
        modprobe $module 2>/dev/null
    done
    [ -f "$dek" ] || fail "the input '${dek##*/}' is missing"
    set -- "$@" --key-size 512 --batch-mode
    if [ "$LUKS_TYPE" = plain ]; then
        sectors=$((($(size_of "$raw") - ${DATA_OFFSET:-0}) / 512))
        # A table wants whole sectors of the size that it names.
        sectors=$((sectors / (${SECTOR_SIZE:-512} / 512) * (${SECTOR_SIZE:-512} / 512)))
        flag=''
        if [ "$1" = --readonly ]; then flag=--readonly; fi
        must dmsetup create plain $flag --table "0 $sectors crypt aes-xts-plain64 $(od -A n -v -t x1 "$dek" | tr -d ' \n') 0 $(readlink -f "$raw") $((${DATA_OFFSET:-0} / 512)) 1 sector_size:${SECTOR_SIZE:-512}"
    else
        [ ! -f "$header" ] || set -- "$@" --header "$header"
        must cryptsetup open --type "${LUKS_TYPE:-luks2}" --volume-key-file "$dek" "$@" "$raw" plain
    fi
    tries=0
    until [ -b /dev/mapper/plain ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "/dev/mapper/plain did not appear"
        must dmsetup mknodes plain
        sleep 0.05
    done
    note "dm-crypt: $(dmsetup table plain | sed 's/ [0-9a-f]\{64,\} / KEY /')"
}

# compare_whole: dm-crypt's view of the disk and ours, byte for byte; left out
# with COMPARE=regions, for a disk with discarded units, which read as zeroes
# through us and as noise through dm-crypt.
compare_whole() {
    [ "$COMPARE" != regions ] || return 0
    sut=${SUT:-/dev/sut0}
    [ "$(size_of "$sut")" -eq "$(size_of /dev/mapper/plain)" ] ||
        fail "sizes differ: $sut $(size_of "$sut"), dm-crypt $(size_of /dev/mapper/plain)"
    forget "$sut"
    forget /dev/mapper/plain
    must cmp "$sut" /dev/mapper/plain
    note "equal, byte for byte: $(size_of "$sut") bytes"
}
