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
cases=(iperf3_moves_to_rxe nginx_workers_moves_to_rxe)
# shellcheck source=ci/lib/harness.sh
. "$top/ci/lib/harness.sh"
harness_arguments "$@"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export SAN_PROGRAMS_PART=20 SAN_PROGRAMS_SLOW=4 SAN_PROGRAMS_OUT=$work
for test in "${cases[@]}"; do
    is_wanted "$test" || continue
    line=$("$top/ci/programs" --here --route upgrade "${test%_moves_to_rxe}" 2>&1 | head -n 4)
    case $line in
        ok*) passed=$((passed + 1)) word=ok ;;
        skipped* | FAILED*'status 75;'*) ignored=$((ignored + 1)) word=ignored ;;
        *) failures+=("$test") word=FAILED ;;
    esac
    printf '%s\ntest %s ... %s\n' "$line" "$test" "$word"
done

harness_result
