#!/usr/bin/env bash
# Devices whose addresses are not the usual one: none at all, two subnets, a VLAN. A connection takes the SAN, or TCP
# with a reason, and never hangs. The peer is on the soft fabric in a namespace of its own:
#
#   cargo build -p san-cli && ci/rxe switch/tests/addresses.sh
#
# `ci/test` runs it in the guest with everything else.
set -u
top=$(cd "$(dirname "$0")/../.." && pwd)
san=${SAN_PROGRAM:-$top/target/debug/san}
unset SAN_PROGRAM
cases=(unusual_addresses)
# shellcheck source=../../ci/lib/harness.sh
. "$top/ci/lib/harness.sh"
harness_arguments "$@"
is_wanted "${cases[0]}" || harness_result
if [ -z "${SAN_TEST_ADDR_SOFT:-}" ] && ! ip netns exec soft true 2>/dev/null; then
    # shellcheck source=../../ci/guest/fabric.sh
    . "$top/ci/guest/fabric.sh"
    fabric_soft || exit 69
fi
# The guest is emulated, and its host may be busy.
export SAN_FABRIC_CONNECT_TIMEOUT_MS=25000
work=$(mktemp -d)

# Leaves server, server.err: a server in the namespace, at this address and port.
serve() {
    local tries=0
    rm -f "$work"/*
    SAN_FABRIC=soft timeout 90 ip netns exec soft "$san" listen "$1" >"$work/server" 2>"$work/server.err" &
    server=$!
    until grep -q listening "$work/server.err" || [ $((tries += 1)) -gt 300 ]; do sleep 0.1; done
}

# Leaves client, and the status in `status`: `hello` from the kernel's device to that server.
say() {
    echo hello | SAN_FABRIC=rdma timeout 60 "$san" connect "$1" 2>"$work/client"
    status=$?
    wait $server
}

# arrived WAY: the bytes came, by this way.
arrived() { [ "$status" = 0 ] && grep -qx hello "$work/server" && grep -q "$1" "$work/client"; }

# A neighbour that is not known yet takes the guest's kernel longer than the switch waits.
mac=$(ip netns exec soft cat /sys/class/net/s1/address)
neighbour() { # ADDRESS LINK
    ip neigh replace "$1" lladdr "$mac" dev "$2" nud permanent
}

# Two subnets on one device.
ip addr add 10.0.9.1/24 dev s0
ip -n soft addr add 10.0.9.2/24 dev s1
SAN_FABRIC=rdma "$san" devices >"$work/devices"
check "both subnets are listed" grep -q "address 10.0.9.1/24 on s0" "$work/devices"
neighbour 10.0.8.2 s0
neighbour 10.0.9.2 s0
serve 0.0.0.0:7001
say 10.0.8.2:7001
check "the first subnet is on the SAN" arrived "over the SAN (rdma, rxe_c)"
serve 0.0.0.0:7002
say 10.0.9.2:7002
check "the second subnet is on the SAN" arrived "over the SAN (rdma, rxe_c)"
ip addr del 10.0.9.1/24 dev s0
ip -n soft addr del 10.0.9.2/24 dev s1

# A VLAN above the device's interface: the device has its GID, and rxe does not reach it (Linux 6.1).
ip link add link s0 name s0.7 type vlan id 7
ip addr add 10.0.11.1/24 dev s0.7
ip link set s0.7 up
ip -n soft link add link s1 name s1.7 type vlan id 7
ip -n soft addr add 10.0.11.2/24 dev s1.7
ip -n soft link set s1.7 up
serve 0.0.0.0:7003
SAN_FABRIC=rdma "$san" devices >"$work/devices"
check "the address of the VLAN is listed" grep -q "address 10.0.11.1/24 on s0.7" "$work/devices"
SAN_FABRIC_CONNECT_TIMEOUT_MS=3000 say 10.0.11.2:7003
check "over a VLAN the bytes arrive" arrived "connected: 10.0.11.2:7003 over"
check "over TCP the reason is told" grep -Eq "over the SAN|over TCP, since (no answer|nobody who speaks RDMA)" "$work/client"
ip link del s0.7
ip -n soft link del s1.7

# No address.
ip addr flush dev s0
SAN_FABRIC=rdma "$san" devices >"$work/devices"
check "a device without an address is listed" grep -q "^rxe_c" "$work/devices"
SAN_FABRIC=rdma "$san" doctor >"$work/doctor"
check "san doctor says that it has none" grep -q "rxe_c has no IP address" "$work/doctor"
serve 0.0.0.0:7004
say 10.0.8.2:7004
check "a connect from there says that there is no way" grep -q "^san: " "$work/client"
# It comes back while a listener runs.
SAN_FABRIC=rdma timeout 60 "$san" listen 0.0.0.0:7005 >"$work/server" 2>"$work/server.err" &
server=$!
tries=0
until grep -q listening "$work/server.err" || [ $((tries += 1)) -gt 300 ]; do sleep 0.1; done
ip addr add 10.0.8.1/24 dev s0
neighbour 10.0.8.2 s0
tries=0 status=1
until [ $status = 0 ] || [ $((tries += 1)) -gt 5 ]; do
    echo hello | SAN_FABRIC=soft timeout 20 ip netns exec soft "$san" connect 10.0.8.1:7005 2>"$work/client"
    status=$?
    [ $status = 0 ] || sleep 1
done
wait $server
check "an address that comes later is served by the listener" arrived "over the SAN (soft"
rm -r "$work"
harness_result
