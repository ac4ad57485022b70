#!/usr/bin/env bash
# What becomes of iWARP devices, which San Direct cannot use: nothing listens there, no connection tries them, and
# `san devices`, `san doctor` and the connection say why. The devices are siw, in software:
#
#   cargo build -p san-cli && SAN_RXE_KERNEL=ubuntu ci/rxe switch/tests/iwarp.sh
#
# The last line counts what passed and failed. Exit status: 0 only if nothing failed.
set -u
top=$(cd "$(dirname "$0")/../.." && pwd)
san=${SAN_PROGRAM:-$top/target/debug/san}
# shellcheck source=../../ci/lib/harness.sh
. "$top/ci/lib/harness.sh"
export SAN_FABRIC=rdma
work=$(mktemp -d)

# serve_and_connect LISTEN CONNECT: `hello` by way of the two addresses. Leaves server, server.err, client.
serve_and_connect() {
    local server tries=0
    timeout 90 "$san" listen "$1" >"$work/server" 2>"$work/server.err" &
    server=$!
    until grep -q listening "$work/server.err" || [ $((tries += 1)) -gt 300 ]; do sleep 0.1; done
    echo hello | timeout 60 "$san" connect "$2" 2>"$work/client"
    wait $server
}

rdma link delete rxe_b
if ! { modprobe siw && rdma link add siw_b type siw netdev v1; }; then
    echo "this kernel has no siw: SAN_RXE_KERNEL=ubuntu"
    exit 69
fi
"$san" devices >"$work/devices"
check "san devices says that one is not used" grep -q "not used: it speaks iWARP" "$work/devices"
serve_and_connect 0.0.0.0:7001 10.0.7.1:7001
check "a wildcard listener beside an iWARP device listens on the other" grep -q "rdma: listens on 10.0.7.1:7001" "$work/server.err"
check "the bytes arrive" grep -qx hello "$work/server"

rdma link delete rxe_a
rdma link add siw_a type siw netdev v0
check "with iWARP alone there is no device" test "$("$san" devices >/dev/null; echo $?)" = 1
"$san" doctor >"$work/doctor"
check "san doctor says why" grep -q "siw_a speaks iWARP" "$work/doctor"
check "and what to use" grep -q "SAN_FABRIC=soft" "$work/doctor"
serve_and_connect 10.0.7.2:7002 10.0.7.2:7002
check "the connection takes TCP and says why" grep -q "over TCP, since this process has no SAN" "$work/client"
check "the listener says why" grep -q "TCP only" "$work/server.err"
# An iWARP connect to a TCP port would write its own header into the server's stream.
check "the server reads the client's bytes and no others" test "$(cat "$work/server")" = hello
rm -r "$work"
harness_result
