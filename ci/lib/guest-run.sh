# shellcheck shell=bash
# Boots the guest for one job and brings back its output and status. Needs common.sh, guest-image.sh and $top.
: "${top:?}" "${guest_modules:=}" "${guest_kernel:=}" "${guest_initrd:=}" # the last three set by guest_image

# Variables of the caller that the job gets, by pattern.
guest_environment='^(RUST_|SAN_|CARGO|CRITERION|PROPTEST_|RDMAV_|IBV_|LC_|(CI|OUT|PATH|HOME|USER|LANG|TERM|NO_COLOR|LD_LIBRARY_PATH)$)'

# guest_run MODE LIMIT CMD...: does not return, but exits with CMD's status.
guest_run() {
    local mode=$1 limit=$2
    shift 2
    run=$(mktemp -d "$top/target/guest/run.XXXXXX")
    trap guest_leave EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    guest_accelerator
    guest_job "$@"
    guest_boot "$mode" "$limit" "$@"
}

# Whatever way the script ends: no machine left behind, no folder either.
guest_leave() {
    [ -z "${vm_pid:-}" ] || kill -TERM "$vm_pid" 2>/dev/null || true
    [ -z "${vm_pid:-}" ] || wait "$vm_pid" 2>/dev/null || true
    if [ "${SAN_RXE_KEEP:-0}" = 1 ]; then warn "kept: $run"; else rm -rf "$run"; fi
}

# The folder that guest and host share for this run: the guest's scripts, the job, and files for its output.
guest_job() {
    local name one_stream=0
    # Of two streams into one file or terminal only one can keep the order.
    [ /dev/fd/1 -ef /dev/fd/2 ] && one_stream=1
    cp "$top/ci/guest/main" "$top/ci/guest/fabric.sh" "$run/"
    chmod 755 "$run/main"
    : >"$run/stdout"
    : >"$run/stderr"
    {
        printf 'job_cwd=%q\njob_out=%q\njob_modules=%q\n' "$PWD" "$OUT" "$guest_modules"
        echo "job_one_stream=$one_stream"
        printf 'job_command=('
        printf '%q ' "$@"
        printf ')\njob_show=('
        guest_shown "$@"
        printf ')\nSAN_RXE_SOFT_NS=%q\n' "${SAN_RXE_SOFT_NS:-0}"
        echo 'job_environment() {'
        # The guest's own addresses count, not those the caller may have for --native.
        compgen -e | grep -E "$guest_environment" | grep -v '^SAN_TEST_ADDR' | while read -r name; do
            printf 'export %s=%q\n' "$name" "${!name}"
        done
        echo ':; }'
    } >"$run/job"
}

# /tmp is fresh in the guest, but a checkout or a file named in the command may lie there.
guest_shown() {
    local path
    for path in "$top" "$PWD" "${CARGO_TARGET_DIR:-}" "$@"; do
        case $path in
            /tmp/?*) [ ! -e "$path" ] || printf '%q\n' "$path" ;;
        esac
    done | sort -u
}

# guest_boot MODE LIMIT CMD...
guest_boot() {
    local mode=$1 limit=$2 machine status=0 ended followers=()
    shift 2
    guest_machine "$mode"
    timeout --foreground --kill-after=5 "$limit" "${machine[@]}" </dev/null >"$run/qemu.log" 2>&1 &
    vm_pid=$!
    tail -c +1 -s 0.05 -f --pid="$vm_pid" "$run/stdout" 2>/dev/null &
    followers+=($!)
    tail -c +1 -s 0.05 -f --pid="$vm_pid" "$run/stderr" >&2 2>/dev/null &
    followers+=($!)
    wait -n -p ended "$vm_pid" "${followers[@]}" || status=$?
    if [ "$ended" != "$vm_pid" ] && kill -0 "$vm_pid" 2>/dev/null; then
        exit 141 # nobody reads our output any more
    fi
    [ "$ended" = "$vm_pid" ] || { status=0 && wait "$vm_pid" || status=$?; }
    vm_pid=
    wait "${followers[@]}" || true
    if [ -e "$run/status" ]; then
        exit "$(cat "$run/status")"
    fi
    if [ "$status" = 124 ] || [ "$status" = 137 ]; then
        [ -e "$run/started" ] || guest_console
        die 124 "the guest was killed after $limit s (SAN_RXE_TIMEOUT); it was running: $*"
    fi
    guest_console
    die 70 "the guest ended without a status (qemu: $status)"
}

# Sets machine=(qemu and its arguments). Reads mode.
guest_machine() {
    local memory append="console=ttyS0 quiet loglevel=4 panic=-1 nowatchdog audit=0 mitigations=off nokaslr random.trust_cpu=on"
    memory=$(awk '/^MemTotal/ { m = int($2 / 2048); print (m > 4096) ? 4096 : m }' /proc/meminfo)
    machine=(qemu-system-x86_64 -M pc -nodefaults -display none -no-reboot -m "${SAN_RXE_MEM:-$memory}"
        -kernel "$guest_kernel" -initrd "$guest_initrd" -serial "file:$run/console.log"
        -virtfs "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
        -virtfs "local,path=$run,mount_tag=run,security_model=none,multidevs=remap"
        -virtfs "local,path=$OUT,mount_tag=out,security_model=none,multidevs=remap")
    case $1:$accelerator in
        icount:*) machine+=(-cpu max -smp 1 -accel "tcg,thread=single" -icount "shift=1,sleep=off") ;;
        *:kvm) machine+=(-cpu host -smp 2 -accel kvm) ;;
        *)
            machine+=(-cpu max -smp 2 -accel "tcg,thread=multi")
            # A processor that sleeps is slow to wake in emulation; one that spins makes a boot on a busy host take
            # three times as long.
            host_is_idle && append+=" idle=poll"
            ;;
    esac
    machine+=(-append "$append")
}

# Whether two of the host's processors are free, more or less.
host_is_idle() {
    awk -v processors="$(nproc)" '{ exit !($1 < processors - 0.5) }' /proc/loadavg
}

# Sets accelerator: kvm only where a kernel was seen to boot under it. /dev/kvm alone says little: inside some virtual
# machines it is there and a guest hangs.
guest_accelerator() {
    local cache
    case ${SAN_RXE_KVM:-} in
        0) accelerator=tcg && return ;;
        1) accelerator=kvm && return ;;
    esac
    accelerator=tcg
    [ -r /dev/kvm ] && [ -w /dev/kvm ] || return 0
    cache=$(uname -rv && grep -m 1 'model name' /proc/cpuinfo)
    cache=$top/target/guest/kvm-$(sha256sum <<<"$cache" | cut -c 1-12)
    if [ ! -e "$cache" ]; then
        warn "trying whether KVM works here (once, at most 10 s)"
        if guest_boots 10 "$guest_kernel" "$guest_initrd" -accel kvm -cpu host; then
            echo kvm >"$cache"
        else
            echo tcg >"$cache"
        fi
    fi
    accelerator=$(cat "$cache")
}

guest_console() {
    warn "the end of the guest's console:"
    tail -n 25 "$run/qemu.log" "$run/console.log" >&2 2>/dev/null || true
}
