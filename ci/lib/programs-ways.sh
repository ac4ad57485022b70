# shellcheck shell=bash
# How ci/programs, which sources this, runs the two ends of a program: both with the library or one without, on machines
# that are slow, and with the SAN cut in the middle; and what it asserts of the counters afterwards. A set-up says
# `in_the_middle` before the client that a cut may meet.
: "${san:?}" "${at:?}" "${out:?}" "${route:?}" "${half?}" "${cutting:?}" "${part:?}" "${slow:?}" "${large:?}"

servers=()
cutter=

# with_library END: sets with=(what a program of that end is run by).
with_library() {
    with=("$san" run --route "$route" --report --)
    # The numbers of a cut are those of the JSON report.
    [ "$cutting" = 0 ] || with=(env "SAN_REPORT=$PWD/report" "$san" run --route "$route" --)
    [ -z "$half" ] || [ "$half" = "$1" ] || with=(env)
}

# server CMD...: starts one, with the library. It is ended with the test.
server() {
    local with
    with_library server
    timeout --kill-after=5 $((400 * slow)) "${with[@]}" "$@" >server.log 2>>server.err </dev/null &
    servers+=($!)
}

# starts CMD...: CMD is a server that goes to the background by itself.
starts() {
    local with
    with_library server
    timeout --kill-after=5 $((150 * slow)) "${with[@]}" "$@" 2>>server.err
}

# client CMD...: runs one to its end, with the library.
client() {
    local with
    with_library client
    timeout --kill-after=5 $((150 * slow)) "${with[@]}" "$@" 2>>client.err
}

stop_servers() {
    for pid in ${servers[@]+"${servers[@]}"}; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    servers=()
}

# leave: what a set-up does at its end, whatever came of it.
leave() {
    [ -z "$cutter" ] || { kill "$cutter" 2>/dev/null && the_san on; } || true
    stop_servers
}

# listens PORT: waits until somebody does.
listens() {
    for _ in $(seq $((200 * slow))); do
        grep -qE "$(printf ':%04X 0*:0000 0A' "$1")" /proc/net/tcp /proc/net/tcp6 && return 0
        sleep 0.05
    done
    echo "nobody listens on port $1"
    return 1
}

# lasting SECONDS: how long a program is to work that would work for SECONDS: longer where queue pairs are made slowly,
# or where the SAN is to be cut meanwhile.
lasting() {
    echo $(($1 * (slow < 4 ? slow : 4) + cutting * 15))
}

# between TURNS: the pause after each of so many turns, in seconds, so that a cut falls among them, or a queue pair that is
# made slowly; none without a cut on a machine that is not slow.
between() {
    echo "$(lasting $((slow > 1 ? 3 : 0))) $1" | awk '{ print $1 / $2 }'
}

# paced FILE: its bytes. With --route upgrade slowly enough for a queue pair to be made on the way.
paced() {
    [ "$route" = upgrade ] || { cat "$1" && return; }
    python3 -c "
import os, sys, time
pieces = 150
file = open(sys.argv[1], 'rb')
while piece := file.read(os.fstat(file.fileno()).st_size // pieces + 1):
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()
    time.sleep(float(sys.argv[2]) / pieces)" "$1" $((2 + cutting * 15))
}

# fetch OPTIONS...: curl for the file `large`, slowly enough for the same. No slower: who has sent more than the other end
# has read asks for a queue pair before that one listens.
fetch() {
    local slowly=()
    [ "$route" = direct ] || slowly=(--limit-rate $((large / $(lasting 3))))
    client curl -sS ${slowly[@]+"${slowly[@]}"} "$@"
}

# dials_late CMD...: CMD, which starts a server that sends one large answer. On a slow machine it asks for a queue pair
# when it has sent megabytes: a client whose switch takes seconds to start listens by then.
dials_late() {
    [ "$route" = direct ] || [ "$slow" = 1 ] || local -x SAN_UPGRADE_BYTES=1000000
    "$@"
}

# the_san off|on: loses what goes over the SAN, and nothing else. Whoever sends it notices nothing.
the_san() {
    local each rule=(dir in proto udp dport 4791)
    [ "$1" = off ] || { ip xfrm policy delete "${rule[@]}"; return; }
    # The loopback heeds no such rule, unless it is told to.
    for each in disable_policy disable_xfrm; do
        echo 0 >"/proc/sys/net/ipv4/conf/lo/$each"
    done
    ip xfrm policy add "${rule[@]}" action block
}

# in_the_middle: with --cut, a stream that has moved is waited for in the background; then the SAN is cut until one has
# come back.
in_the_middle() {
    [ "$cutting" = 1 ] || return 0
    cut_when_moved >cut.log 2>&1 &
    cutter=$!
}

cut_when_moved() {
    local since
    wait_for streams_up
    sleep 0.5
    since=$EPOCHREALTIME
    the_san off
    wait_for streams_down || { the_san on && return 75; }
    sleep 1
    the_san on
    echo "cut for $(((${EPOCHREALTIME/./} - ${since/./}) / 1000)) ms"
}

# wait_for COUNTER: until it is more than nothing in a process that runs.
wait_for() {
    # By the clock: where a machine is emulated `san stat` alone takes a second.
    local until=$((SECONDS + 10 * slow))
    while [ "$SECONDS" -lt "$until" ]; do
        "$san" stat --json >stat.json 2>/dev/null && [ "$(sum_of "$1" stat.json)" != 0 ] && return 0
        sleep 0.1
    done
    echo "$1 is still 0"
    return 75
}

# sum_of COUNTER FILE...: of all the reports, one or a list in each line.
sum_of() {
    jq -n --arg name "$1" '[inputs | .. | objects | .[$name]? | numbers] | add // 0' "${@:2}"
}

# came_back: of the connections some have moved to the SAN, and come back to TCP when it was cut.
came_back() {
    local status=0
    wait "$cutter" || status=$?
    cutter=
    cat cut.log
    [ "$status" = 0 ] || return 75
    local up down
    up=$(sum_of streams_up report) down=$(sum_of streams_down report)
    echo "$up times to the SAN, $down times back; $(tail -n 1 cut.log)"
    [ "$up" -gt 0 ] && [ "$down" -gt 0 ] || return 75
}

# stayed_on_tcp: nothing has gone over the SAN, by the end that has the library.
stayed_on_tcp() {
    local reports asked
    # A server counts what it asked for in vain when it closes, which may be after the client's end.
    [ "$half" = client ] || wait_for stayed_unanswered >/dev/null || true
    "$san" stat --json >stat.json 2>/dev/null || echo '[]' >stat.json
    stop_servers
    touch server.err client.err
    [ "$(sum_of streams_up stat.json)" = 0 ] || { echo "a stream has moved" && return 1; }
    reports=$(cat server.err client.err | awk '
        /^san: .*connections? over the SAN/ {
            for (i = 1; i <= NF; i++) {
                if ($(i + 1) ~ /^connections?$/) san += $i
                if ($(i + 1) == "over" && $(i + 2) ~ /^TCP/) tcp += $i
            }
        }
        END { print san + 0, tcp + 0 }')
    [ "${reports% *}" = 0 ] || { echo "${reports% *} connections over the SAN" && return 1; }
    # Servers that a signal ends have no report; they have counted what they asked for in vain.
    asked=$(sum_of stayed_unanswered stat.json)
    [ $((${reports#* } + asked)) -gt 0 ] || { echo "the library has had no connection" && return 1; }
    echo "over TCP; ${reports#* } connections in the reports, $asked unanswered before"
}

# went_over_the_san BYTES [TCP]: fails with status 75 unless the clients' reports name at least so many bytes over the SAN, and no connection over
# TCP, or at most TCP of them. Of connections that begin on TCP what they carry first stays there, and short ones do.
# With one end that has the library alone nothing may go over the SAN; with a cut, a stream has moved and come back.
went_over_the_san() {
    [ -z "$half" ] || { stayed_on_tcp; return; }
    [ "$cutting" = 0 ] || { came_back; return; }
    local least=$1 most=${2:-0}
    if [ "$route" = upgrade ]; then
        # On a busy machine queue pairs come late, and few of many short connections get one.
        least=$((least / 40)) most=1000000
        # What was under way on TCP before a queue pair was there stays there, and rates are the programs' own choice.
        case $name in http | redis | socat* | nc | ncat | haproxy | openssl | asyncio | sockperf | qperf | stress_ng)
            least=10000 ;;
        esac
        [ "$slow" = 1 ] || [ "$least" -lt 10000 ] || least=10000
    fi
    awk -v least="$least" -v most="$most" '
        /^san: .*connections? over the SAN/ {
            for (i = 1; i <= NF; i++) {
                if ($(i + 1) ~ /^connections?$/) san += $i
                if ($(i + 1) == "over" && $(i + 2) ~ /^TCP/) tcp += $i
                if ($(i + 1) == "bytes" || $(i + 1) == "sent") bytes += $i
            }
        }
        END {
            if (tcp > most || san == 0 || bytes < least) {
                printf "%d connections over the SAN, %d over TCP, %d bytes over the SAN, but %d are wanted\n", san, tcp, bytes, least
                exit 75
            }
            printf "%d connections, %d bytes over the SAN", san, bytes
        }' client.err
}
