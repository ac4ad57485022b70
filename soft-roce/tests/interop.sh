#!/usr/bin/env bash
# The soft endpoint against what others wrote, on the kernel's rxe, in both directions; and our provider on rxe against
# our provider on the soft endpoint. Runs in the guest:
#
#   ci/rxe soft-roce/tests/interop.sh [--list] [NAME...]
#
# A NAME is part of a case's name. The endpoint lives in a network namespace, whose port 4791 is free; the originals
# (rping, ucmatose, ib_send_lat, ib_send_bw) on the device rxe_c at the other end of a wire. `captured` runs rping once
# more while tcpdump looks on, and has the capture checked: by tshark, which must decode every packet without finding
# one malformed, and by scapy's RoCE layer, which computes every ICRC. `lossy` cases run rping, which compares what comes
# back, while packets of one kind are lost on the wire, one of four: answers (ACKs, NAKs, READ responses) or requests, of
# one side or of both. It talks like a program of Rust's test harness, so
# that ci/test can run it as one: --list, `--exact NAME...`, the last lines. Exit status 0: all passed, 101: not all.
#
# Settings: SAN_INTEROP and SAN_PROGRAM, the programs (default: those in target/debug); what they say when a case fails is shown.
set -u
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
interop=${SAN_INTEROP:-$top/target/debug/examples/interop}
san=${SAN_PROGRAM:-$top/target/debug/san}
cases=(rping-to-soft rping-from-soft rping6-to-soft rping6-from-soft cmatose-to-soft cmatose-from-soft
    cmatose6-to-soft cmatose6-from-soft send-lat-to-soft send-lat-from-soft send-lat6-to-soft send-lat6-from-soft
    send-bw-to-soft send-bw-from-soft send-bw6-to-soft send-bw6-from-soft
    lossy-answers-of-soft-to-soft lossy-answers-of-soft-from-soft lossy-answers-of-rxe-to-soft
    lossy-answers-of-rxe-from-soft lossy-requests-to-soft lossy-requests-from-soft mtu-differs
    san-to-soft san-from-soft san6-to-soft san6-from-soft captured-by-tshark captured-by-scapy)
# shellcheck source=../../ci/lib/harness.sh
. "$top/ci/lib/harness.sh"
harness_arguments "$@"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${SAN_TEST_ADDR_SOFT:-}" ]; then
    # shellcheck source=../../ci/guest/fabric.sh
    . "$top/ci/guest/fabric.sh"
    fabric_soft >"$work/up" 2>&1 || { cat "$work/up" && exit 69; }
    SAN_TEST_ADDR_SOFT=10.0.8.2 SAN_TEST_ADDR_SOFT_RXE=10.0.8.1
    SAN_TEST_ADDR6_SOFT=fd00:8::2 SAN_TEST_ADDR6_SOFT_RXE=fd00:8::1
fi
soft=$SAN_TEST_ADDR_SOFT rxe=$SAN_TEST_ADDR_SOFT_RXE soft6=$SAN_TEST_ADDR6_SOFT rxe6=$SAN_TEST_ADDR6_SOFT_RXE
# A route from a bound source to a neighbour that is not known yet takes the guest's kernel longer than the switch waits.
mac=$(ip netns exec soft cat /sys/class/net/s1/address)
for address in "$soft" "$soft6"; do ip neigh replace "$address" lladdr "$mac" dev s0 nud permanent; done
export XDG_RUNTIME_DIR=$work
unset SAN_FABRIC SAN_TEST_ADDR_A SAN_TEST_ADDR_B

in_soft() { exec ip netns exec soft timeout 60 "$@"; }
original() { exec timeout 60 "$@"; }

# Until the server of a case listens: an endpoint has a file for it, the kernel's CM an id.
await_server() {
    local deadline=$((SECONDS + 20))
    while [ $SECONDS -lt $deadline ] && kill -0 "$1" 2>/dev/null; do
        case $2 in
            in_soft) compgen -G "$work/soft-roce/*-[0-9]*" >/dev/null && return ;;
            *) rdma resource show cm_id 2>/dev/null | grep LISTEN >/dev/null && return ;;
        esac
        sleep 0.1
    done
}

passes() {
    passed=$((passed + 1))
    echo "test $1 ... ok"
}

fails() {
    failures+=("$1")
    echo "test $1 ... FAILED"
}

ignores() {
    ignored=$((ignored + 1))
    echo "test $1 ... ignored"
}

# pair NAME SERVER-COMMAND -- CLIENT-COMMAND: 0 if both end well.
pair() {
    local server=() client_status server_status
    shift
    while [ "$1" != -- ]; do server+=("$1") && shift; done
    shift
    rm -rf "$work/soft-roce"
    ("${server[@]}") >"$work/server" 2>"$work/server.err" </dev/null &
    local pid=$!
    await_server "$pid" "${server[0]}"
    ("$@") >"$work/client" 2>"$work/client.err" </dev/null
    client_status=$?
    wait "$pid"
    server_status=$?
    [ "$client_status" = 0 ] && [ "$server_status" = 0 ] && return
    echo "server $server_status, client $client_status"
    for log in server server.err client client.err; do
        [ ! -s "$work/$log" ] || cut -c1-400 "$work/$log" | tail -8 | sed "s/^/  $log: /"
    done
    return 1
}

# case_ NAME SERVER-COMMAND -- CLIENT-COMMAND
case_() {
    is_wanted "$1" || return 0
    local try
    for try in 1 2 3; do
        if pair "$@"; then
            passes "$1"
            return
        fi
        # perftest measures the processor's clock first, and gives up where the host is too busy for that.
        grep -q "Correlation coefficient" "$work"/*.err || break
        echo "perftest could not measure its clock, time $try"
    done
    fails "$1"
}

# san_case NAME ADDRESS SERVER-SIDE CLIENT-SIDE: random bytes there and back, compared, and both went over the SAN.
san_case() {
    local name=$1 address=$2 listens=$3 connects=$4 bytes=$work/in
    is_wanted "$name" || return 0
    head -c 3000000 /dev/urandom >"$bytes"
    fabric() { if [ "$1" = in_soft ]; then echo "SAN_FABRIC=soft"; else echo "SAN_FABRIC=rdma"; fi; }
    rm -rf "$work/soft-roce"
    ("$listens" env "$(fabric "$listens")" "$san" listen --echo "$address") >"$work/server" 2>"$work/server.err" </dev/null &
    local pid=$!
    await_server "$pid" "$listens"
    ("$connects" env "$(fabric "$connects")" "$san" connect "$address") >"$work/client" 2>"$work/client.err" <"$bytes"
    local status=$?
    kill "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
    if [ "$status" = 0 ] && cmp "$bytes" "$work/client" && grep -q 'over the SAN' "$work/client.err" &&
        grep -q 'over the SAN' "$work/server.err"; then
        passes "$name"
    else
        echo "client $status"
        sed 's/^/  server: /' "$work/server.err" | tail -8
        sed 's/^/  client: /' "$work/client.err" | tail -8
        fails "$name"
    fi
}

# lose NAMESPACE LINK FROM TO: of the RoCEv2 packets that come in over LINK with an opcode of FROM..TO one of four is lost.
lose() {
    local run=() opcode
    [ "$1" = . ] || run=(ip netns exec "$1")
    "${run[@]}" tc qdisc replace dev "$2" clsact || return 1
    for ((opcode = $3; opcode <= $4; opcode++)); do
        # The byte behind the headers of IPv4 (no options) and UDP.
        "${run[@]}" tc filter add dev "$2" ingress protocol ip prio 1 u32 match ip protocol 17 0xff \
            match u16 4791 0xffff at 22 match u8 "$opcode" 0xff at 28 \
            action pass random netrand drop 4 || return 1
    done
}

lossless() {
    tc qdisc del dev s0 clsact 2>/dev/null
    ip netns exec soft tc qdisc del dev s1 clsact 2>/dev/null
}

# lossy_case NAME COUNT SIDE...: COUNT pings. A client of the kernel waits two seconds for each packet lost; a server as
# long as the endpoint asked for when it connected, and it is the server who READs and WRITEs. SIDE is answers-of-soft, answers-of-rxe, requests-of-soft or requests-of-rxe.
lossy_case() {
    local name=$1 count=$2 side status=0 size=1000
    is_wanted "$name" || return 0
    shift 2
    # Packets go alone over the wire, not joined for an offload.
    ip -n soft link set s1 gso_max_segs 1
    for side in "$@"; do
        case $side in
            answers-of-soft) lose . s0 13 17 ;;
            answers-of-rxe) lose soft s1 13 17 ;;
            requests-of-soft) lose . s0 0 12 ;;
            requests-of-rxe) lose soft s1 0 12 ;;
        esac >"$work/tc" 2>&1 || status=1
    done
    if [ "$status" != 0 ]; then
        sed 's/^/  tc: /' "$work/tc"
    elif [[ $name == *-to-soft ]]; then
        pair "$name" in_soft "$interop" rping-server "$soft" count=$count size=$size -- \
            original rping -c -a "$soft" -C $count -S $size -V
        status=$?
    else
        pair "$name" original rping -s -a "$rxe" -C $count -S $size -- \
            in_soft "$interop" rping-client "$rxe" count=$count size=$size
        status=$?
    fi
    lossless
    if [ "$status" = 0 ]; then passes "$name"; else fails "$name"; fi
}

# The endpoint's link takes frames of 1,500 bytes, that of the kernel 9,000: the kernel's request for packets of 4,096
# bytes is refused at once, with REJ 26.
mtu_differs() {
    is_wanted "$1" || return 0
    local status=0
    ip -n soft link set s1 mtu 1500
    ip -n soft route flush cache
    rm -rf "$work/soft-roce"
    (in_soft "$interop" rping-server "$soft" count=1) >"$work/server" 2>"$work/server.err" </dev/null &
    local pid=$!
    await_server "$pid" in_soft
    (original rping -c -a "$soft" -C 1 -V) >"$work/client" 2>&1 </dev/null
    # rping prints the event and its status.
    grep -q 'REJECTED.* 26' "$work/client" || { sed 's/^/  client: /' "$work/client" && status=1; }
    kill "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
    ip -n soft link set s1 mtu 9000
    if [ "$status" = 0 ]; then passes "$1"; else fails "$1"; fi
}

# Takes $work/pcap, once.
capture() {
    [ ! -e "$work/pcap" ] || return 0
    # Packets as they go over a wire: not joined for an offload that this one has.
    ip -n soft link set s1 gso_max_segs 1
    tcpdump -Z root -i s0 -U -B 8192 -w "$work/pcap" udp port 4791 2>"$work/tcpdump" &
    local pid=$! deadline=$((SECONDS + 20))
    while ! grep -q listening "$work/tcpdump" && [ $SECONDS -lt $deadline ]; do sleep 0.1; done
    pair capture in_soft "$interop" rping-server "$soft" count=3 size=10000 -- original rping -c -a "$soft" -C 3 -S 10000 -V
    local status=$?
    sleep 1
    kill "$pid"
    wait "$pid" 2>/dev/null
    return "$status"
}

captured() {
    is_wanted "$1" || return 0
    if ! command -v "$2" >/dev/null && ! /usr/bin/python3 -c "import $2" 2>/dev/null; then
        ignores "$1"
    elif capture && "check_by_$2"; then
        passes "$1"
    else
        fails "$1"
    fi
}

check_by_tshark() {
    local packets bad
    packets=$(tshark -r "$work/pcap" -Y infiniband 2>/dev/null | wc -l)
    bad=$(tshark -r "$work/pcap" -Y '_ws.malformed || !infiniband' 2>/dev/null | wc -l)
    echo "tshark: $packets packets decoded, $bad malformed"
    [ "$packets" -ge 20 ] && [ "$bad" = 0 ]
}

check_by_scapy() {
    /usr/bin/python3 - "$work/pcap" <<'END'
import sys
from scapy.contrib.roce import BTH
from scapy.layers.inet import IP
from scapy.utils import rdpcap

checked = wrong = 0
for packet in rdpcap(sys.argv[1]):
    if BTH not in packet:
        continue
    payload = bytes(packet[BTH])
    expected = packet[BTH].compute_icrc(payload[:-4])
    checked += 1
    wrong += expected != payload[-4:]
print(f"scapy: {checked} ICRCs checked, {wrong} wrong")
sys.exit(wrong != 0 or checked < 20)
END
}

for v in "" 6; do
    if [ -z "$v" ]; then s=$soft r=$rxe; else s=$soft6 r=$rxe6; fi
    case_ "rping$v-to-soft" in_soft "$interop" rping-server "$s" count=20 size=10000 -- original rping -c -a "$s" -C 20 -S 10000 -V
    case_ "rping$v-from-soft" original rping -s -a "$r" -C 20 -S 10000 -- in_soft "$interop" rping-client "$r" count=20 size=10000
    family=()
    [ -z "$v" ] || family=(-f ip6)
    case_ "cmatose$v-to-soft" in_soft "$interop" cmatose-server "$s" connections=5 size=5000 -- original ucmatose "${family[@]}" -s "$s" -c 5 -S 5000
    case_ "cmatose$v-from-soft" original ucmatose "${family[@]}" -b "$r" -c 5 -S 5000 -- in_soft "$interop" cmatose-client "$r" connections=5 size=5000
    family=()
    if [ -n "$v" ]; then
        # Old versions cannot name a peer by its IPv6 address.
        if ! ib_send_lat --help 2>&1 | grep -e --ipv6-addr >/dev/null; then
            for name in send-lat6-to-soft send-lat6-from-soft send-bw6-to-soft send-bw6-from-soft; do
                ! is_wanted $name || ignores $name
            done
            continue
        fi
        family=(--ipv6-addr)
    fi
    case_ "send-lat$v-to-soft" in_soft "$interop" send-lat-server "$s" size=64 count=300 -- original ib_send_lat -R "${family[@]}" -d rxe_c -s 64 -n 300 "$s"
    case_ "send-lat$v-from-soft" original ib_send_lat -R "${family[@]}" -d rxe_c -s 64 -n 300 -- in_soft "$interop" send-lat-client "$r" size=64 count=300
    case_ "send-bw$v-to-soft" in_soft "$interop" send-bw-server "$s" size=65536 count=200 -- original ib_send_bw -R "${family[@]}" -d rxe_c -s 65536 -n 200 "$s"
    case_ "send-bw$v-from-soft" original ib_send_bw -R "${family[@]}" -d rxe_c -s 65536 -n 200 -- in_soft "$interop" send-bw-client "$r" size=65536 count=200
done
lossy_case lossy-answers-of-soft-to-soft 6 answers-of-soft
lossy_case lossy-answers-of-soft-from-soft 60 answers-of-soft
lossy_case lossy-answers-of-rxe-to-soft 6 answers-of-rxe
lossy_case lossy-answers-of-rxe-from-soft 6 answers-of-rxe
lossy_case lossy-requests-to-soft 6 requests-of-soft requests-of-rxe
lossy_case lossy-requests-from-soft 6 requests-of-soft requests-of-rxe
mtu_differs mtu-differs
san_case san-to-soft "$soft:7300" in_soft original
san_case san-from-soft "$rxe:7300" original in_soft
san_case san6-to-soft "[$soft6]:7300" in_soft original
san_case san6-from-soft "[$rxe6]:7300" original in_soft
captured captured-by-tshark tshark
captured captured-by-scapy scapy

harness_result
