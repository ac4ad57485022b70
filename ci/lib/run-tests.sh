#!/usr/bin/env bash
# Runs test programs one after the other, each in its package's folder and under a time limit of its own.
#
#   run-tests.sh LIST LOGS FILTER [ARGUMENT...]
#
# LIST: a line for each program, tab separated: package, cargo's option for it, folder, program, and perhaps arguments
# for it alone. LOGS gets a log for each and `index`: the list's line with the exit status and the log's name before it.
# A line a program is printed. It judges nothing: exit status 0 when all of the list ran, whatever came of it. Runs here and in the guest alike.
#
# SAN_TEST_REPEAT=N runs each of them N times, or until it fails; its log has all of it.
set -u
list=$1 logs=$2 filter=$3
shift 3
limit=${SAN_TEST_LIMIT:-300}
repeat=${SAN_TEST_REPEAT:-1}
: >"$logs/index"

# Some tests leave the guest's devices broken: who comes after them gets new ones.
fresh_devices() {
    [ -e /run/san/fabric.sh ] || return 0
    # shellcheck source=ci/guest/fabric.sh
    . /run/san/fabric.sh
    fabric_again
}

number=0
while IFS=$'\t' read -r package option folder program argument <&3; do
    number=$((number + 1))
    log=$(printf '%s/%02d-%s%s.log' "$logs" "$number" "$package" "${option// /-}")
    started=$EPOCHREALTIME
    : >"$log"
    round=0 status=0
    while [ "$status" = 0 ] && [ $((round += 1)) -le "$repeat" ]; do
        [ "$round" = 1 ] || fresh_devices >>"$log" 2>&1
        # The braces keep this shell's own remarks about a crash out of the output.
        { (
            cd "$folder" || exit 70
            export CARGO_MANIFEST_DIR=$folder CARGO_PKG_NAME=$package
            # shellcheck disable=SC2086 # several arguments, if any
            exec timeout --kill-after=5 "$limit" "$program" ${filter:+"$filter"} $argument "$@" </dev/null
        ) >>"$log" 2>&1; } 2>/dev/null
        status=$?
    done
    took=$(((${EPOCHREALTIME/./} - ${started/./}) / 100000))
    case $status in
        0) verdict=$(awk '/^test result: ok/ { sum += $4; many = 1 } END { if (many) print sum " passed" }' "$log") ;;
        101) verdict=FAILED ;;
        124 | 137) verdict="KILLED after $limit s" ;;
        *) verdict="ENDED with status $status" ;;
    esac
    [ "$repeat" = 1 ] || [ "$status" = 0 ] || verdict+=" in round $round of $repeat"
    printf '  %-44s %s (%d.%d s)\n' "$package $option" "${verdict:-passed}" $((took / 10)) $((took % 10))
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$status" "$log" "$package" "$option" "$folder" "$program" >>"$logs/index"
done 3<"$list"
