# shellcheck shell=bash
# What the scripts in qemu/ share: which QEMU, which accelerator, and how QEMU
# wants its options written. Sourced after scripts/lib.sh.

GUEST_DIR=${SEALBLK_GUEST_DIR:-$TARGET/guest}

# choose_qemu [BINARY]: prints the QEMU to use: the argument, else $QEMU, else
# the one that is installed. "7.2" stands for the one of qemu/get-qemu-7.2.
choose_qemu() {
    local qemu=${1:-${QEMU:-qemu-system-x86_64}}
    [[ $qemu != 7.2 ]] || qemu=${QEMU_7_2:-$("$PROJECT/qemu/get-qemu-7.2")}
    command -v "$qemu" ||
        die "'$qemu' is not installed" "run 'scripts/install-deps guest', or name another with --qemu"
}

# qemu_at_least BINARY MAJOR MINOR
qemu_at_least() {
    local version major minor
    version=$("$1" --version | sed -n '1s/.*version \([0-9]*\.[0-9]*\).*/\1/p')
    major=${version%.*} minor=${version#*.}
    ((major > $2 || (major == $2 && minor >= $3)))
}

# qemu_value TEXT: a comma inside an option's value is written twice.
qemu_value() { printf '%s' "${1//,/,,}"; }

# cpu_of ACCELERATOR: la57 makes page walks of an emulated CPU longer, for
# nothing in a guest of this size.
cpu_of() { if [[ $1 == kvm ]]; then echo host; else echo max,la57=off; fi; }

# accel_option ACCELERATOR: the value of -accel. One thread emulates all CPUs: with
# a thread for each, QEMU aborts now and then in iotlb_to_section() while one CPU
# maps a PCI device and another one uses a device (QEMU issue 1921, seen with 10.0).
# Not slower: little in these guests runs on two CPUs at once.
accel_option() { if [[ $1 == tcg ]]; then echo tcg,thread=single; else echo "$1"; fi; }

# choose_accel auto|kvm|tcg QEMU: prints kvm or tcg.
#
# /dev/kvm opening, or even a few instructions running, proves little: on some
# nested hosts a Linux guest still never gets anywhere. So the trial is the
# guest's own kernel, for ten seconds, and its answer is kept until the host
# reboots or QEMU or the kernel change.
choose_accel() {
    [[ $1 == auto ]] || { echo "$1"; return; }
    [[ -r /dev/kvm && -w /dev/kvm ]] || { echo tcg; return; }
    local key answer cache=$GUEST_DIR/accel
    key="$(</proc/sys/kernel/random/boot_id) $2 $("$2" --version | head -n 1) $(stat -L -c '%s %Y' "$GUEST_DIR/vmlinuz")"
    for answer in kvm tcg; do
        if grep -qsFx "$answer $key" "$cache"; then
            echo "$answer"
            return
        fi
    done
    say "trying whether guests run under KVM here (once, up to 10 seconds)"
    answer=tcg
    # The trial's first line of console output decides; QEMU powers off by itself.
    if timeout -k 2 10 "$2" -accel kvm -cpu host -machine q35 -m 256 -nodefaults -no-user-config \
        -display none -no-reboot -serial stdio -kernel "$GUEST_DIR/vmlinuz" -initrd "$GUEST_DIR/initrd" \
        -append 'console=ttyS0 quiet panic=-1 sealblk.trial' </dev/null 2>/dev/null |
        grep -q 'sealblk-guest: trial passed'; then
        answer=kvm
    fi
    echo "$answer $key" >>"$cache"
    echo "$answer"
}
