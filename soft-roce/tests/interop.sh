#!/usr/bin/env bash
# The soft endpoint against what others wrote, on the kernel's rxe, in both directions. Runs in the guest:
#
#   SAN_RXE_SOFT_NS=1 ci/rxe soft-roce/tests/interop.sh PATH/TO/interop [NAME...]
#
# PATH/TO/interop is `cargo build -p soft-roce --example interop`. The endpoint lives in the namespace `soft`, whose
# port 4791 is free; the originals (rping, ucmatose, ib_send_lat, ib_send_bw) on rxe_c. Leaves a capture of each
# case in $OUT if CAPTURE=1 (`ci/rxe env CAPTURE=1 ...`). Exit status 0: all passed.
set -u
interop=$(realpath "$1")
shift
wanted=${*:-all}
soft=${SAN_TEST_ADDR_SOFT:?run with SAN_RXE_SOFT_NS=1}
rxe=${SAN_TEST_ADDR_SOFT_RXE:?}
soft6=$SAN_TEST_ADDR6_SOFT
rxe6=$SAN_TEST_ADDR6_SOFT_RXE
passed=0
failed=0

in_soft() { ip netns exec soft timeout 40 "$interop" "$@"; }
original() { timeout 40 "$@"; }

# case_ NAME SERVER-COMMAND -- CLIENT-COMMAND
case_() {
    local name=$1 server=() status capture=
    shift
    [ "$wanted" = all ] || [[ " $wanted " == *" $name "* ]] || return 0
    while [ "$1" != -- ]; do server+=("$1"); shift; done
    shift
    if [ "${CAPTURE:-0}" = 1 ]; then
        tcpdump -Z root -i s0 -U -w "/tmp/$name.pcap" udp port 4791 2>/dev/null &
        capture=$!
        sleep 1
    fi
    "${server[@]}" >/tmp/server.log 2>&1 &
    local pid=$!
    sleep 2
    "$@" >/tmp/client.log 2>&1
    status=$?
    wait "$pid"
    local server_status=$?
    [ -z "$capture" ] || { sleep 1; kill "$capture"; wait "$capture" 2>/dev/null; cp "/tmp/$name.pcap" "${OUT:-/tmp}"; }
    if [ "$status" = 0 ] && [ "$server_status" = 0 ]; then
        passed=$((passed + 1))
        echo "ok     $name: $(grep -hoE 'one way .*|.* MB/s' /tmp/client.log | tail -1)"
    else
        failed=$((failed + 1))
        echo "FAILED $name: server $server_status, client $status"
        cut -c1-400 /tmp/server.log | tail -12 | sed 's/^/  server: /'
        cut -c1-400 /tmp/client.log | tail -12 | sed 's/^/  client: /'
    fi
}

case_ rping-to-soft in_soft rping-server "$soft" count=20 size=10000 -- original rping -c -a "$soft" -C 20 -S 10000 -V
case_ rping-from-soft original rping -s -a "$rxe" -C 20 -S 10000 -- in_soft rping-client "$rxe" count=20 size=10000
case_ rping6-to-soft in_soft rping-server "$soft6" count=20 size=10000 -- original rping -c -a "$soft6" -C 20 -S 10000 -V
case_ rping6-from-soft original rping -s -a "$rxe6" -C 20 -S 10000 -- in_soft rping-client "$rxe6" count=20 size=10000
case_ cmatose-to-soft in_soft cmatose-server "$soft" connections=5 size=5000 -- original ucmatose -s "$soft" -c 5 -S 5000
case_ cmatose-from-soft original ucmatose -b "$rxe" -c 5 -S 5000 -- in_soft cmatose-client "$rxe" connections=5 size=5000
case_ send-lat-to-soft in_soft send-lat-server "$soft" size=64 count=500 -- original ib_send_lat -R -d rxe_c -s 64 -n 500 "$soft"
case_ send-lat-from-soft original ib_send_lat -R -d rxe_c -s 64 -n 500 -- in_soft send-lat-client "$rxe" size=64 count=500
case_ send-bw-to-soft in_soft send-bw-server "$soft" size=65536 count=300 -- original ib_send_bw -R -d rxe_c -s 65536 -n 300 "$soft"
case_ send-bw-from-soft original ib_send_bw -R -d rxe_c -s 65536 -n 300 -- in_soft send-bw-client "$rxe" size=65536 count=300

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
