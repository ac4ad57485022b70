# For scripts that talk like a program of Rust's test harness, so that ci/test can run them as one; and checks by name.
# To be sourced. A script has the names of its tests in `cases`, and counts in `passed`, `ignored` and `failures`.
# shellcheck shell=bash disable=SC2034 # those who source it use these
wanted=() list=0 exact=0
passed=0 ignored=0 failures=()

# harness_arguments ARGUMENT...: what the harness understands of them; --list ends the script with the names.
harness_arguments() {
    local name
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
    [ "$list" = 1 ] || return 0
    for name in "${cases[@]}"; do ! is_wanted "$name" || echo "$name: test"; done
    exit 0
}

is_wanted() {
    local word
    [ ${#wanted[@]} != 0 ] || return 0
    for word in "${wanted[@]}"; do
        if [ "$exact" = 1 ]; then [ "$1" = "$word" ] && return 0; else [[ $1 == *"$word"* ]] && return 0; fi
    done
    return 1
}

# harness_result: the last lines. Ends the script: 0 if nothing failed, else 101.
harness_result() {
    local word=ok
    if [ ${#failures[@]} != 0 ]; then
        word=FAILED
        printf '\nfailures:\n'
        printf '    %s\n' "${failures[@]}"
    fi
    printf '\ntest result: %s. %d passed; %d failed; %d ignored; 0 measured; 0 filtered out\n' \
        "$word" "$passed" ${#failures[@]} "$ignored"
    [ "$word" = ok ] || exit 101
    exit 0
}

# check NAME CMD...: counts, and shows what lies in $work if the command fails.
check() {
    local name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        echo "ok: $name"
    else
        failures+=("$name")
        echo "FAILED: $name"
        head -n 40 "$work"/* 2>/dev/null
    fi
}
