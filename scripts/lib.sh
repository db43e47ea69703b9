# shellcheck shell=bash
# What every script of the project starts with: strict mode, messages that
# name cause and next step, and an exit that ends only what the script started.
# Sourced, never run.

set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C
# Tools such as mke2fs and depmod are not on an ordinary user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

PROJECT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# Everything that is built lands where cargo builds.
TARGET=${CARGO_TARGET_DIR:-$PROJECT/target}
export PROJECT TARGET
SCRIPT_NAME=${0##*/}

# say TEXT…: one line of progress, on stderr, so that stdout stays for results.
say() { printf '%s: %s\n' "$SCRIPT_NAME" "$*" >&2; }

# die CAUSE [NEXT-STEP]: ends the script. EXIT_STATUS sets another status than 1.
die() {
    printf '%s: error: %s\n' "$SCRIPT_NAME" "$1" >&2
    [[ $# -lt 2 ]] || printf '%s: help: %s\n' "$SCRIPT_NAME" "$2" >&2
    exit "${EXIT_STATUS:-1}"
}

# usage: prints the comment at the top of the running script.
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; }

# bad_usage CAUSE: for a wrong command line.
bad_usage() { die "$1" "run '$SCRIPT_NAME --help'"; }

# need COMMAND…: ends the script when one of them is not installed.
need() {
    local command
    for command in "$@"; do
        command -v "$command" >/dev/null ||
            die "'$command' is not installed" "run scripts/install-deps"
    done
}

# as_root COMMAND…: runs it as root, through sudo when we are somebody else.
as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "'$1' needs root, and sudo is not installed" "run this script as root"
    fi
}

# --- what the script owns, and takes away when it ends -----------------------

OWNED_DIRS=()
OWNED_PIDS=()

# own_dir DIR / own_pid PID: removed, or stopped, when the script ends.
own_dir() { OWNED_DIRS+=("$1"); }
own_pid() { OWNED_PIDS+=("$1"); }

# temp_dir VARIABLE: makes a private directory, removed at the end. Sets the
# variable rather than printing: in a subshell the ownership would be lost.
temp_dir() {
    local -n temp_dir_result=$1
    temp_dir_result=$(mktemp -d "${TMPDIR:-/tmp}/sealblk-XXXXXXXX")
    own_dir "$temp_dir_result"
}

# is_own_child PID: true while PID is a process that this shell started and has
# not collected: a number that the system has since given away is never hit.
is_own_child() {
    local job
    for job in $(jobs -pr); do
        [[ $job != "$1" ]] || return 0
    done
    return 1
}

# stop_pid PID: SIGTERM, SIGKILL after five seconds, and collects it.
stop_pid() {
    local tries
    if is_own_child "$1"; then
        kill -TERM "$1" 2>/dev/null || true
        for ((tries = 0; tries < 50; tries++)); do
            is_own_child "$1" || break
            sleep 0.1
        done
        ! is_own_child "$1" || kill -KILL "$1" 2>/dev/null || true
    fi
    wait "$1" 2>/dev/null || true
}

clean_up() {
    local item
    for item in ${OWNED_PIDS[@]+"${OWNED_PIDS[@]}"}; do stop_pid "$item"; done
    for item in ${OWNED_DIRS[@]+"${OWNED_DIRS[@]}"}; do rm -rf -- "$item"; done
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# is_listening PATH: whether a server listens on this unix socket, by whichever
# name, as given or absolute, it bound it. /proc/net/unix is asked, as a trial
# connection would be taken for the guest by a vhost-user server.
is_listening() {
    local absolute flags path
    absolute=$(realpath -m -- "$1")
    while read -r _ _ _ flags _ _ _ path; do
        # __SO_ACCEPTCON: it listens.
        [[ $flags == 00010000 && ($path == "$1" || $path == "$absolute") ]] || continue
        return 0
    done </proc/net/unix
    return 1
}

# wait_for_socket PATH PID [SECONDS]: until a server listens on PATH. Fails when
# its process PID is gone, or the time is over.
wait_for_socket() {
    local deadline=$((SECONDS + ${3:-30}))
    until is_listening "$1"; do
        is_own_child "$2" || return 1
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# os_is ID [VERSION]: os_is debian 12
os_is() {
    local id version
    # shellcheck source=/dev/null
    id=$(. /etc/os-release && echo "$ID")
    # shellcheck source=/dev/null
    version=$(. /etc/os-release && echo "${VERSION_ID:-}")
    [[ $id == "$1" && ($# -lt 2 || $version == "$2") ]]
}
