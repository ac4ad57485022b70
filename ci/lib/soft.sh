# shellcheck shell=bash
# The stage of ci/test that runs the tests of the fabric on the soft one, on this host. Needs common.sh, packages.sh,
# results.sh, stages.sh, $top and $filter.
: "${top:?}" "${filter?}" "${results:=}"

# What does not run there: ci/soft-cannot.txt says why.
soft_cannot=$top/ci/soft-cannot.txt

stage_soft() {
    local where=always line status=0
    try_packages iproute2 util-linux >&2 || true # without them it is the loopback
    # shellcheck disable=SC2016 # for the shell in there
    "$top/ci/soft" sh -c '[ -n "$SAN_TEST_ADDR6_A" ]' || where=loopback
    [ "$where" = always ] || printf 'no network namespace here: on the loopback\n'
    soft_check_list
    mkdir -p "$results/soft"
    cat "$results/guest.list" "$results/last.list" >"$results/soft.list"
    while IFS= read -r line; do soft_line "$line" "$where"; done <"$results/soft.list" >"$results/soft.todo"
    while IFS=$'\t' read -r line status; do result_skipped "$line" "$status"; done <"$results/soft.skip"
    [ -s "$results/soft.todo" ] || return 0
    status=0
    SAN_TEST_LIMIT=${SAN_TEST_SOFT_LIMIT:-120} "$top/ci/soft" "$top/ci/lib/run-tests.sh" \
        "$results/soft.todo" "$results/soft" "" --test-threads=1 || status=$?
    result_programs soft "$results/soft"
    [ "$status" = 0 ] || result_failed "the soft fabric (status $status)" "ci/soft true"
}

# soft_line LINE WHERE: the line of a program with the tests of it to run there by name; nothing if there are none. What
# it leaves out goes to soft.skip.
soft_line() {
    local package option folder program argument name reason run=() arguments=()
    IFS=$'\t' read -r package option folder program argument <<<"$1"
    read -ra arguments <<<"$argument"
    while IFS= read -r name; do
        if reason=$(soft_reason "$package" "${option#--* }" "$name" "$2"); then
            printf '%s on the soft fabric\t%s\n' "$package $name" "$reason" >>"$results/soft.skip"
        else
            run+=("$name")
        fi
    done < <("$program" --list --format terse ${arguments[@]+"${arguments[@]}"} ${filter:+"$filter"} | sed -n 's/: test$//p')
    [ ${#run[@]} = 0 ] || printf '%s\t%s\t%s\t%s\t%s\n' "$package" "$option" "$folder" "$program" \
        "${arguments[0]:-} --exact ${run[*]}"
}

# soft_reason PACKAGE PROGRAM TEST WHERE: prints why it does not run, and fails if it does.
soft_reason() {
    awk -v key="$1 $2 $3" -v where="$4" '
        ($1 " " $2 " " $3 == key || ($3 == "*" && index(key, $1 " " $2 " ") == 1)) && ($4 == "always" || $4 == where) {
            $1 = $2 = $3 = $4 = ""; sub(/^ +/, ""); print; found = 1
        }
        END { exit !found }' "$soft_cannot"
}

# Every line of the list names a test that there is.
soft_check_list() {
    local package target name where program
    : >"$results/soft.skip"
    while read -r package target name where _; do
        program=$(awk -F '\t' -v p="$package" -v t="$target" '$1 == p && $2 ~ "^--[a-z]+ " t "$" { print $4 }' "$results/guest.list")
        if [ -z "$program" ] || ! "$program" --list --format terse | grep -x "${name/#\*/.*}: test" >/dev/null ||
            [[ ! $where =~ ^(always|loopback)$ ]]; then
            result_failed "ci/soft-cannot.txt names '$package $target $name $where', which there is not" "ci/test"
        fi
    done < <(grep -v '^#' "$soft_cannot" | grep .)
}

# Unmodified programs with san run (ci/programs has the list): by both routes, and a few with the library at one end, and
# with the SAN cut in the middle.
stage_programs() {
    [ -z "$filter" ] || return 0
    local some=(http redis nginx)
    programs --route upgrade
    programs --route direct
    programs --half server "${some[@]}"
    programs --half client "${some[@]}"
    programs --cut http redis
}

# programs ARGUMENT...: one run of ci/programs.
programs() {
    local word name rest log=$results/programs
    for word in "$@"; do log+=-${word#--}; done
    log+=.log
    SAN_PROFILE=debug "$top/ci/programs" "$@" >"$log" 2>&1 || true
    while read -r word name rest; do
        name="ci/programs $* ($name)"
        case $word in
            ok) passed=$((passed + 1)) && printf '%s: ok\n' "$name" ;;
            skipped) result_skipped "$name" "$rest" ;;
            FAILED) result_failed "$name" "ci/programs $*" ;;
        esac
    done <"$log"
    grep -q ' passed, ' "$log" || result_failed "ci/programs $*" "ci/programs $*"
}
