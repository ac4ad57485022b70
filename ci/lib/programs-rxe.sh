#!/usr/bin/env bash
# Unmodified programs on the guest's rxe, by the upgrade route: those of ci/programs that are quick enough there.
#
#   ci/rxe ci/lib/programs-rxe.sh [--list] [NAME...]
#
# It talks like a program of Rust's test harness, so that ci/test can run it as one. A set-up whose bytes came too late for
# a queue pair, three times, is ignored, and said: an emulated machine that has much else to do may be too slow for it. Whatever
# else goes wrong is a failure. Exit status 0: none failed, 101: one did.
set -u
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cases=(iperf3)
wanted=() list=0 exact=0
while [ $# -gt 0 ]; do
    case $1 in
        --list) list=1 ;;
        --exact) exact=1 ;;
        --format) shift ;;
        --*) ;; # what else the harness understands
        *) wanted+=("$1") ;;
    esac
    shift
done

is_wanted() {
    local word
    [ ${#wanted[@]} != 0 ] || return 0
    for word in "${wanted[@]}"; do
        if [ "$exact" = 1 ]; then [ "$1" = "$word" ] && return 0; else [[ $1 == *"$word"* ]] && return 0; fi
    done
    return 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 ignored=0 failures=()
export SAN_PROGRAMS_PART=20 SAN_PROGRAMS_SLOW=4 SAN_PROGRAMS_OUT=$work
for name in "${cases[@]}"; do
    test=${name}_moves_to_rxe
    is_wanted "$test" || continue
    [ "$list" = 0 ] || { echo "$test: test" && continue; }
    line=$("$top/ci/programs" --here --route upgrade "$name" 2>&1 | head -n 4)
    case $line in
        ok*) passed=$((passed + 1)) word=ok ;;
        skipped* | FAILED*'status 75;'*) ignored=$((ignored + 1)) word=ignored ;;
        *) failures+=("$test") word=FAILED ;;
    esac
    printf '%s\ntest %s ... %s\n' "$line" "$test" "$word"
done
[ "$list" = 0 ] || exit 0

if [ ${#failures[@]} != 0 ]; then printf '\nfailures:\n' && printf '    %s\n' "${failures[@]}"; fi
word=ok
[ ${#failures[@]} = 0 ] || word=FAILED
printf '\ntest result: %s. %d passed; %d failed; %d ignored; 0 measured; 0 filtered out\n' \
    "$word" "$passed" ${#failures[@]} "$ignored"
[ ${#failures[@]} = 0 ] || exit 101
