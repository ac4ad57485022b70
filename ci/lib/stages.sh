# shellcheck shell=bash
# The stages of ci/test. Each returns non-zero only when what comes after it makes no sense any more; what fails in
# it, it reports to results.sh. Needs common.sh, packages.sh, results.sh, $top and $filter.
: "${top:?}" "${filter?}" "${results:=}"

# Members that the plain cargo commands leave out: the witnesses need headers and libclang.
without_witnesses=(--workspace --exclude san-witnesses)

# Members that others can use, and that may be published.
published=(-p san-base -p soft-roce -p verbs-shim -p san-provider -p san-stream -p san-switch -p san-switch-tokio -p san-cli -p san-preload)

stage_tools() {
    command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null || die 69 "Rust is not installed (https://rustup.rs)"
    command -v cc >/dev/null || need_packages gcc libc6-dev
    command -v jq >/dev/null || need_packages jq
    command -v python3 >/dev/null || need_packages python3-minimal
}

stage_format() {
    cargo fmt --all --check || result_failed "format" "cargo fmt --all --check"
}

stage_lint() {
    cargo clippy -q "${without_witnesses[@]}" --all-targets -- -D warnings ||
        result_failed "lint" "cargo clippy ${without_witnesses[*]} --all-targets -- -D warnings"
    RUSTDOCFLAGS="-D warnings" cargo doc -q --no-deps "${without_witnesses[@]}" ||
        result_failed "rustdoc" "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps ${without_witnesses[*]}"
    cargo package -q --offline --no-verify --allow-dirty "${published[@]}" ||
        result_failed "cargo package" "cargo package --no-verify ${published[*]}"
    "$top/ci/links" || result_failed "links of the documentation" "ci/links"
    "$top/ci/circles" || result_failed "circles of modules" "ci/circles"
    "$top/ci/picture" --check || result_failed "the picture of the README" "ci/picture --check"
}

# Of san-tests, the test that leaves the devices broken: nothing comes after it.
last_test="failures wsd_113_the_link_goes_down_in_the_middle_of_transfers"

# Builds every program once: those that tests start, then the tests. Sets up the two lists.
stage_build() {
    # As one step each, or a test that starts `san` might find an old one.
    if ! cargo build -q "${without_witnesses[@]}" ||
        ! test_programs "${without_witnesses[@]}" >"$results/programs"; then
        result_failed "build" "cargo test ${without_witnesses[*]} --no-run"
        return 1
    fi
    local line
    : >"$results/native.list"
    : >"$results/guest.list"
    : >"$results/last.list"
    while IFS= read -r line; do
        case $line in
            san-tests$'\t--test '"${last_test% *}"$'\t'*)
                printf '%s\t--include-ignored --skip %s\n' "$line" "${last_test#* }" >>"$results/guest.list"
                [[ ${last_test#* } != *"$filter"* ]] ||
                    printf '%s\t--include-ignored --exact %s\n' "$line" "${last_test#* }" >>"$results/last.list"
                continue
                ;;
            san-tests$'\t'*)
                # What a plain `cargo test` leaves out, too.
                printf '%s\t--include-ignored\n' "$line" >>"$results/guest.list"
                continue
                ;;
        esac
        echo "$line" >>"$results/native.list"
        program_tests "$line" --ignored && printf '%s\t--ignored\n' "$line" >>"$results/guest.list"
    done <"$results/programs"
    return 0
}

# program_tests LINE ARGUMENT...: whether the program of a list's line has tests that the arguments select.
program_tests() {
    local program
    program=$(cut -f 4 <<<"$1")
    shift
    # No -q: the program would fail for a reader that goes away early.
    "$program" --list --format terse "$@" 2>/dev/null | grep ': test$' >/dev/null
}

# test_programs CARGO-ARGUMENT...: builds test programs and prints them, tab separated: package, cargo's option that
# selects it, the package's folder, the program.
test_programs() {
    cargo test -q --no-run --message-format=json-render-diagnostics "$@" >"$results/cargo.json" || return 1
    cargo metadata -q --format-version 1 --no-deps >"$results/metadata.json" || return 1
    jq -r --slurpfile workspace "$results/metadata.json" '
        ($workspace[0].packages | map({ key: .manifest_path, value: .name }) | from_entries) as $names
        | select(.reason == "compiler-artifact" and .profile.test and .executable != null)
        | [ $names[.manifest_path],
            if .target.kind[0] == "lib" then "--lib" else "--\(.target.kind[0]) \(.target.name)" end,
            (.manifest_path | sub("/Cargo.toml$"; "")),
            .executable ] | @tsv' "$results/cargo.json"
}

stage_native() {
    run_list native "$top/ci/lib/run-tests.sh"
}

# The unit tests of the crates with unsafe, as far as they need no device, under valgrind's memcheck. It does not know
# userfaultfd (verbs-shim's watch::), and cannot be stopped politely.
stage_memcheck() {
    [ -z "$filter" ] || return 0
    if ! try_packages valgrind >&2; then
        result_skipped "memcheck" "valgrind cannot be had"
        return 0
    fi
    memcheck verbs-shim --skip watch::
    memcheck soft-roce wire:: rc::
}

# memcheck PACKAGE ARGUMENT...: the tests of its library that the arguments select.
memcheck() {
    local package=$1 folder program log=$results/memcheck-$1.log
    shift
    read -r folder program < <(awk -F '\t' -v p="$package" '$1 == p && $2 == "--lib" { print $3, $4 }' "$results/programs")
    (
        cd "$folder" || exit 70
        PROPTEST_CASES=4 timeout --kill-after=5 170 \
            valgrind -q --error-exitcode=9 "$program" --test-threads=2 "$@" </dev/null
    ) >"$log" 2>&1 || {
        result_failed "memcheck of $package (status $?)" "valgrind --error-exitcode=9 $program $*"
        tail -n 40 "$log"
    }
    result_count "$log" "memcheck $package" "valgrind $program" memcheck
}

stage_doc() {
    local log=$results/doc.log
    cargo test -q "${without_witnesses[@]}" --exclude san-tests --doc --no-fail-fast -- "$filter" >"$log" 2>&1 || true
    result_log doc "$log"
}

# The witnesses join the guest's list, where they can be built.
stage_witnesses() {
    [ -z "$filter" ] || grep -qrE "fn [a-z0-9_]*${filter##*::}" tests/witnesses --include '*.rs' || return 0
    local why
    if ! why=$(witness_libclang); then
        result_skipped "the witnesses" "$why"
        return 0
    fi
    # Said outright, it is the same for test and lint, and bindgen is not built once for each.
    export LIBCLANG_PATH=$why CARGO_PROFILE_DEV_BUILD_OVERRIDE_DEBUG=false
    if test_programs -p san-witnesses >"$results/witnesses"; then
        cat "$results/witnesses" >>"$results/guest.list"
    else
        result_failed "build of the witnesses" "LIBCLANG_PATH=$LIBCLANG_PATH cargo test -p san-witnesses --no-run"
        return 0
    fi
    [ -n "$filter" ] || cargo clippy -q -p san-witnesses --all-targets -- -D warnings ||
        result_failed "lint of the witnesses" "LIBCLANG_PATH=$LIBCLANG_PATH cargo clippy -p san-witnesses --all-targets -- -D warnings"
}

# Prints the folder of a libclang that rdma-sys's bindgen works with, having got the packages; or why there is none.
witness_libclang() {
    local version dir
    if ! try_packages libibverbs-dev librdmacm-dev pkg-config cmake gcc libc6-dev >&2; then
        echo "libibverbs-dev, librdmacm-dev, pkg-config or cmake cannot be had"
        return 1
    fi
    for dir in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"} /usr/lib/llvm-14/lib /usr/lib/llvm-15/lib; do
        # The compiler's own headers are a package of their own; without them bindgen finds no stddef.h.
        compgen -G "$dir/libclang[.-]*so*" >/dev/null && compgen -G "$dir/clang/*/include/stddef.h" >/dev/null &&
            echo "$dir" && return 0
    done
    for version in 14 15; do
        apt-cache show "libclang1-$version" >/dev/null 2>&1 &&
            try_packages "libclang1-$version" "libclang-common-$version-dev" >&2 &&
            echo "/usr/lib/llvm-$version/lib" && return 0
    done
    echo "neither libclang 14 nor 15 can be had (rdma-sys does not build with later ones)"
    return 1
}

stage_guest() {
    local status=0
    # The soft endpoint against what others wrote, late, since it adds a device. Tests have built the example that it
    # starts; without these packages nobody looks at a capture of it.
    try_packages tshark python3-scapy >&2 || true
    printf 'soft-roce\t--test interop\t%s\t%s\n' "$top/soft-roce" "$top/soft-roce/tests/interop.sh" >>"$results/guest.list"
    printf 'san-preload\t--test programs-rxe\t%s\t%s\n' "$top" "$top/ci/lib/programs-rxe.sh" >>"$results/guest.list"
    printf 'san-switch\t--test addresses\t%s\t%s\n' "$top/switch" "$top/switch/tests/addresses.sh" >>"$results/guest.list"
    cat "$results/last.list" >>"$results/guest.list"
    OUT=$results SAN_RXE_TIMEOUT=${SAN_TEST_GUEST_LIMIT:-1800} \
        run_list guest "$top/ci/rxe" "$top/ci/lib/run-tests.sh" --test-threads=1 || status=$?
    [ "$status" = 0 ] || result_failed "the guest (status $status)" "ci/rxe true"
}

# A message, a connect and an accept cost no more instructions than is written down.
stage_instructions() {
    local log=$results/instructions.log
    if "$top/ci/bench" --instructions --no-rsockets --ceiling "$top/ci/instructions-ceiling.txt" >"$log" 2>&1; then
        passed=$((passed + 1))
        grep 'can be lowered' "$log" || true
    else
        result_failed "instructions" "ci/bench --instructions --no-rsockets --ceiling ci/instructions-ceiling.txt"
        tail -n 40 "$log"
    fi
}

# run_list NAME RUNNER...: gives the runner the list and the folder for logs, then reads what came of it. Boots nothing
# when nothing of the list fits the filter.
run_list() {
    local name=$1 status=0
    shift
    list_matching <"$results/$name.list" >"$results/$name.todo"
    mkdir -p "$results/$name"
    [ -s "$results/$name.todo" ] || return 0
    case $1 in
        */rxe) set -- "$1" "$2" "$results/$name.todo" "$results/$name" "$filter" "${@:3}" ;;
        *) set -- "$1" "$results/$name.todo" "$results/$name" "$filter" "${@:2}" ;;
    esac
    "$@" || status=$?
    result_programs "$name" "$results/$name"
    return "$status"
}

# Of a list, the programs with a test that fits the filter.
list_matching() {
    local line arguments
    while IFS= read -r line; do
        arguments=$(cut -f 5 <<<"$line")
        # shellcheck disable=SC2086 # several, if any
        [ -n "$filter" ] && ! program_tests "$line" $arguments "$filter" || printf '%s\n' "$line"
    done
}
