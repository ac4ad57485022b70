# shellcheck shell=bash
# Finds the IP addresses of this host's own RDMA devices. Does not set devices up.
# shellcheck disable=SC2034 # native_reason is for the caller

# native_addresses: sets SAN_TEST_ADDR_A and _B unless the caller gave them: two devices if there are two, else the
# same one twice (an adapter talks with itself). Fails when there is none.
native_addresses() {
    local found
    mapfile -t found < <(native_device_addresses)
    SAN_TEST_ADDR_A=${SAN_TEST_ADDR_A:-${found[0]:-}}
    SAN_TEST_ADDR_B=${SAN_TEST_ADDR_B:-${found[1]:-$SAN_TEST_ADDR_A}}
    [ -n "$SAN_TEST_ADDR_A" ]
}

# native_usable: the same, and this user may use them. Sets native_reason when not.
native_usable() {
    if ! compgen -G '/sys/class/infiniband/*' >/dev/null; then
        native_reason="this host has no RDMA device"
    elif ! native_addresses; then
        native_reason="no RDMA device of this host has an active port with an IPv4 address"
    elif [ ! -w /dev/infiniband/rdma_cm ]; then
        native_reason="/dev/infiniband/rdma_cm cannot be used (module rdma_ucm, permissions)"
    else
        export SAN_TEST_ADDR_A SAN_TEST_ADDR_B
        return 0
    fi
    return 1
}

# One IPv4 address for each active port, in the order of the devices.
native_device_addresses() {
    local port link seen=" "
    for port in /sys/class/infiniband/*/ports/*; do
        grep -qs ACTIVE "$port/state" || continue
        while read -r link; do
            case $seen in *" $link "*) continue ;; esac
            seen+="$link "
            ip -4 -o addr show dev "$link" scope global 2>/dev/null |
                awk '{ sub("/.*", "", $4); print $4; exit }'
        done < <(port_links "$port")
    done
}

# The network interfaces of a port: RoCE and iWARP name them with the GIDs, InfiniBand has IPoIB on the same device.
port_links() {
    local port=$1 device
    device=$(readlink -f "${port%/ports/*}/device" 2>/dev/null || true)
    {
        cat "$port"/gid_attrs/ndevs/* 2>/dev/null || true
        [ -z "$device" ] || ls "$device/net" 2>/dev/null || true
    } | awk '!seen[$0]++'
}
