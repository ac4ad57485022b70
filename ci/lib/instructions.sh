# shellcheck shell=bash
# Counts instructions in the guest: ci/bench --instructions, and a stage of ci/test. Needs common.sh, packages.sh and
# $top; $target and $out are cargo's folder and the one for results.
: "${top:?}" "${target:=}" "${out:=}"

# count_instructions OPTION...: those of benches/instructions.
count_instructions() {
    local arguments=() value=0 argument
    # Paths are the caller's; the guest sees them as they are, but keeps nothing that is written elsewhere than in OUT.
    need_packages valgrind binutils
    cargo build -q --profile dist -p san-instructions --example instructions
    # Names come from the symbols. valgrind reads whatever else is there, too, for half a minute in emulation.
    strip --strip-debug -o "$out/instructions" "$target/dist/examples/instructions"
    for argument in "$@"; do
        [ "$value" = 0 ] || argument=$(realpath -m "$argument")
        case $argument in --json | --ceiling) value=1 ;; *) value=0 ;; esac
        arguments+=("$argument")
    done
    # rsockets poll for 10 us before they sleep, unless told otherwise; nobody else here does.
    # shellcheck disable=SC2016 # for the shell in there
    SAN_RXE_TIMEOUT=${SAN_BENCH_LIMIT:-1800} OUT=$out "$top/ci/rxe" --icount sh -c '
        mkdir -p /etc/rdma/rsocket && echo 0 >/etc/rdma/rsocket/polling_time
        program=$1 && shift
        exec "$program" --out /tmp/instructions "$@"
    ' sh "$out/instructions" ${arguments[@]+"${arguments[@]}"}
}
