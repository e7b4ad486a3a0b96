#!/bin/bash
# Installs Guard in a test guest the way a person does on a real host: units, first administrator, people, enrolment.
# Leaves the sign-ins in /root/.config/guard (profiles: default is the approver, admin is the administrator) and
# their names and passwords in /root/guard-vm/NAME.json (mode 0600).
# provision.sh whole | people | console | install | join: everything; the same with the people of most tests; all but the start of the
# agent; only the files; enrolment with the token in /root/guard-vm/token.
set -Eeuo pipefail
umask 077
url=https://localhost:8443
ca=/var/lib/guard-console/ca.pem

step() { now=$1; }
trap 'echo "provision: failed: $now" >&2; journalctl --no-pager -q -n 40 -u guard-console -u guard-agent >&2 || true' ERR

install_files() {
    step "install the files"
    mkdir -p /run/guard-vm/guard /root/guard-vm
    mount -t erofs -o ro /dev/vdc /run/guard-vm/guard
    cp -a /run/guard-vm/guard/. /
    umount /run/guard-vm/guard
    systemd-sysusers 2>/dev/null
    systemctl daemon-reload
}

person() { # NAME: makes and remembers a password
    head -c 18 /dev/urandom | base64 | tr '+/' '-_' >"/root/guard-vm/$1.password"
    printf '{"username": "%s", "password": "%s"}\n' "$1" "$(cat "/root/guard-vm/$1.password")" >"/root/guard-vm/$1.json"
}

set_up_console() {
    step "start the console"
    systemctl start guard-console

    step "make the first administrator"
    person admin
    guard --as admin login --url "$url" --ca "$ca" --username admin --password-file /root/guard-vm/admin.password \
        --setup-secret-file /var/lib/guard-console/setup-link >/dev/null

    step "make the approver and sign in"
    person approver
    guard --as admin users add approver --role approver --password-file /root/guard-vm/approver.password >/dev/null
    guard login --url "$url" --ca "$ca" --username approver --password-file /root/guard-vm/approver.password >/dev/null

    step "make a token for this host"
    guard --as admin tokens create --description "test guest" --out /root/guard-vm/token >/dev/null 2>&1
}

# Somebody who may approve, but owns the label coder.
add_owner() {
    step "make the owner of coder and sign in"
    person owner
    guard --as admin users add owner --role approver --group code-push --password-file /root/guard-vm/owner.password >/dev/null
    guard --as admin label set-owner coder --owner owner >/dev/null
    curl --silent --show-error --fail --cacert "$ca" --json @/root/guard-vm/owner.json "$url/api/v1/sessions" >/root/guard-vm/owner.session
}

enrol() {
    step "enrol this host"
    guard-agent enroll --token-file /root/guard-vm/token >/dev/null
    rm /root/guard-vm/token
}

# Most tests are about other things than changes of files.
free_writes() {
    step "write the agent's configuration"
    mkdir -p /etc/guard
    printf '[hold]\nwrites = "free"\n' >/etc/guard/agent.toml
}

join() {
    enrol
    step "start the agent"
    systemctl start guard-agent
}

wait_until_enforcing() {
    step "wait until the console sees this host enforce"
    for _ in $(seq 300); do
        if guard --as admin hosts list -o json | jq -e 'any(.items[]; .state == "online" and .enforcing)' >/dev/null; then
            return 0
        fi
        sleep 0.2
    done
    guard --as admin hosts list >&2 || true
    return 1
}

case $1 in
whole)
    install_files
    set_up_console
    join
    wait_until_enforcing
    ;;
people)
    install_files
    free_writes
    set_up_console
    join
    add_owner
    wait_until_enforcing
    ;;
console)
    install_files
    set_up_console
    enrol
    ;;
install) install_files ;;
join) join ;;
esac
