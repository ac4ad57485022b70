# shellcheck shell=bash
# Keeps count of what passed, failed and was skipped, times the stages, and says it all at the end. Knows the output
# of Rust's test harness; runs nothing. Needs common.sh.

# results_start FOLDER: a fresh folder for logs and lists.
results_start() {
    results=$1
    rm -rf "$results"
    mkdir -p "$results"
    passed=0 failed=0 skipped=0
    failures=() skips=() times=()
    started=$SECONDS
}

# stage NAME FUNCTION: runs it and takes its time; its status is the function's.
stage() {
    local since=$SECONDS status=0
    printf '== %s\n' "$1"
    "$2" || status=$?
    times+=("$(printf '%5d s  %s' $((SECONDS - since)) "$1")")
    return "$status"
}

# result_failed WHAT COMMAND: something failed that COMMAND does again.
result_failed() {
    failed=$((failed + 1))
    failures+=("$1: $2")
    printf 'FAILED: %s\n' "$1"
}

# result_skipped WHAT WHY
result_skipped() {
    skipped=$((skipped + 1))
    skips+=("$1: skipped, because $2")
    printf '%s\n' "${skips[-1]}"
}

# result_programs NAME LOGS: what run-tests.sh left in LOGS. A program that it never came to has failed.
result_programs() {
    local name=$1 logs=$2 status log package option program again before
    while IFS=$'\t' read -r package option _ program _; do
        grep -qsF "	$program" "$logs/index" ||
            result_failed "$package $option" "$(result_again "$name" "$package" "$option") (never ran)"
    done <"$results/$name.todo"
    [ -e "$logs/index" ] || return 0
    while IFS=$'\t' read -r status log package option _; do
        again=$(result_again "$name" "$package" "$option")
        before=$failed
        result_count "$log" "$package $option" "$again" "$name"
        case $status in
            0) continue ;;
            124 | 137) result_broken "$package $option: out of time" "$log" "$again" ;;
            *) [ "$failed" != "$before" ] || result_broken "$package $option: status $status" "$log" "$again" ;;
        esac
        result_show "$log"
    done <"$logs/index"
}

# result_log NAME LOG: the output of one `cargo test`.
result_log() {
    local before=$failed
    result_count "$2" "$1" "cargo test --$1" "$1"
    if [ "$failed" != "$before" ]; then
        result_show "$2"
    elif ! grep -q '^test result:' "$2"; then
        result_failed "$1" "cargo test --$1"
        result_show "$2"
    fi
}

results_finish() {
    local line
    printf '\n== time\n'
    printf '%s\n' "${times[@]}"
    printf '%5d s  all\n' $((SECONDS - started))
    [ ${#skips[@]} = 0 ] || printf '\n== skipped\n'
    for line in "${skips[@]}"; do printf '%s\n' "$line"; done
    [ ${#failures[@]} = 0 ] || printf '\n== failed, and how to run it again\n'
    for line in "${failures[@]}"; do printf '%s\n' "$line"; done
    [ $((passed + failed)) != 0 ] || printf 'no test fits\n'
    line="$passed passed, $failed failed"
    [ "$skipped" = 0 ] || line+=", $skipped skipped"
    printf '\n%s\n' "$line"
    [ "$failed" = 0 ] && [ "$passed" != 0 ]
}

# The command that runs a test program again; a test's name fits behind it.
result_again() {
    case $1 in
        guest | soft) echo "ci/test" ;;
        *) echo "cargo test -p $2 $3" ;;
    esac
}

# result_count LOG WHERE AGAIN NAME: adds up the summaries in a log and names the tests that failed in it. What is
# ignored in the run `native` has its turn in the guest.
result_count() {
    local log=$1 name ok bad ignored
    read -r ok bad ignored < <(awk '/^test result:/ {
        for (i = 2; i <= NF; i++) {
            if ($i ~ /^passed/) p += $(i - 1)
            if ($i ~ /^failed/) f += $(i - 1)
            if ($i ~ /^ignored/) s += $(i - 1)
        }
    } END { print p + 0, f + 0, s + 0 }' "$log")
    [ "$4" != native ] || ignored=0
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + ignored))
    [ "$ignored" = 0 ] || skips+=("$2: $ignored skipped by the program itself (its log says which)")
    while IFS= read -r name; do
        failures+=("$2 $name: $3 '${name}'")
    done < <(awk '
        /^failures:$/ { n = 0; listing = 1; next }
        listing && /^    [^ ]/ { names[n++] = substr($0, 5) }
        /^test result:/ { for (i = 0; listing && i < n; i++) print names[i]; n = listing = 0 }
    ' "$log")
}

# result_broken WHAT LOG AGAIN: a program that came to no summary, and the test that its log breaks off in.
result_broken() {
    local name
    name=$(sed -n 's/^test \(.*[^ ]\) \.\.\..*/\1/p' "$2" | tail -n 1)
    [ -z "$name" ] || set -- "$1" "$2" "$3 '$name'"
    result_failed "$1 in ${name:-its beginning}" "$3"
}

# The part of a log that tells why.
result_show() {
    printf -- '-- %s\n' "${1#"$PWD/"}"
    awk '/^failures:$/ { on = 1 } on' "$1" | grep . | head -n 200 || { tail -n 60 "$1" && echo; }
}
