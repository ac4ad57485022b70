# shellcheck shell=bash
# Two soft-RoCE devices in one network namespace with a wire between them: a veth pair, an rxe device on each end,
# and routing rules that send what goes from one end's address to the other's over the wire instead of the short
# way inside the kernel (rxe on Linux 6.1 lives in the initial namespace only, so the ends cannot be parted).
# Sourced by main; sets fabric_error on failure and the SAN_TEST_ADDR* variables.

fabric_up() {
    # shellcheck disable=SC2034 # read by main
    fabric_error="cannot load the kernel's RDMA modules"
    # The CRC's fast form must be there before rxe asks for one; a kernel with it built in has no such module.
    modprobe -qa crc32_generic crc32_pclmul || true
    modprobe -a veth rdma_rxe rdma_ucm ib_uverbs ib_umad || return 1
    fabric_error="cannot make the pair of RDMA devices"
    ip link set lo up || return 1
    fabric_pair && fabric_rxe rxe_a v0 && fabric_rxe rxe_b v1 || return 1
    export SAN_TEST_ADDR_A=10.0.7.1 SAN_TEST_ADDR_B=10.0.7.2
    export SAN_TEST_ADDR6_A=fd00:7::1 SAN_TEST_ADDR6_B=fd00:7::2
    if [ "${SAN_RXE_SOFT_NS:-0}" = 1 ]; then
        # shellcheck disable=SC2034
        fabric_error="cannot make the namespace for a soft endpoint"
        fabric_soft || return 1
        export SAN_TEST_ADDR_SOFT_RXE=10.0.8.1 SAN_TEST_ADDR_SOFT=10.0.8.2
        export SAN_TEST_ADDR6_SOFT_RXE=fd00:8::1 SAN_TEST_ADDR6_SOFT=fd00:8::2
    fi
}

fabric_mac0=02:00:0a:00:07:01 fabric_mac1=02:00:0a:00:07:02

# Commands go to `ip` and `rdma` in batches: starting a program is what takes time in emulation.
fabric_pair() {
    echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
    echo 0 >/proc/sys/net/ipv6/conf/default/accept_ra
    echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
    ip link add v0 mtu 9000 address $fabric_mac0 type veth peer name v1 mtu 9000 address $fabric_mac1 || return 1
    fabric_end v0 && fabric_end v1 || return 1
    ip -batch - <<END || return 1
addr add 10.0.7.1/24 dev v0
addr add 10.0.7.2/24 dev v1
addr add fd00:7::1/64 dev v0 nodad
addr add fd00:7::2/64 dev v1 nodad
link set v0 up
link set v1 up
$(fabric_way v0 101 10.0.7.1 10.0.7.2 32 $fabric_mac1)
$(fabric_way v1 102 10.0.7.2 10.0.7.1 32 $fabric_mac0)
rule add pref 40 from 0.0.0.0/32 to 10.0.7.2 lookup 101
rule add pref 40 from 0.0.0.0/32 to 10.0.7.1 lookup 102
rule add pref 100 lookup local
rule del pref 0
END
    # Rules of IPv6 cannot ask for 'no source yet': all but what goes from an address to itself takes the wire.
    ip -6 -batch - <<END
$(fabric_way v0 101 fd00:7::1 fd00:7::2 128 $fabric_mac1)
$(fabric_way v1 102 fd00:7::2 fd00:7::1 128 $fabric_mac0)
rule add pref 30 from fd00:7::1 to fd00:7::1 lookup local
rule add pref 30 from fd00:7::2 to fd00:7::2 lookup local
rule add pref 40 to fd00:7::2 lookup 101
rule add pref 40 to fd00:7::1 lookup 102
rule add pref 100 lookup local
rule del pref 0
END
}

# Makes good what a link that was down has lost, and the devices anew: for who comes after a test that breaks them.
fabric_again() {
    rdma link delete rxe_a
    rdma link delete rxe_b
    ip -batch - <<END
link set v0 up
link set v1 up
addr replace fd00:7::1/64 dev v0 nodad
addr replace fd00:7::2/64 dev v1 nodad
END
    {
        fabric_way v0 101 10.0.7.1 10.0.7.2 32 "$fabric_mac1"
        fabric_way v1 102 10.0.7.2 10.0.7.1 32 "$fabric_mac0"
        fabric_way v0 101 fd00:7::1 fd00:7::2 128 "$fabric_mac1"
        fabric_way v1 102 fd00:7::2 fd00:7::1 128 "$fabric_mac0"
    } | sed -n 's/^route add/route replace/p; /^neigh/p' | ip -force -batch -
    fabric_rxe rxe_a v0 && fabric_rxe rxe_b v1
}

fabric_end() {
    local conf=/proc/sys/net/ipv4/conf/$1
    echo 0 >"$conf/rp_filter" && echo 1 >"$conf/accept_local" && echo 1 >"$conf/arp_ignore" &&
        echo 2 >"$conf/arp_announce"
}

# fabric_way LINK TABLE FROM TO BITS MAC: what comes in is ours; what leaves for the peer takes LINK, for sockets bound
# to the link or to the address. (The rules for sockets bound to nothing, and the one that puts the kernel's short cut
# behind all these, follow in fabric_pair.)
fabric_way() {
    echo "rule add pref 10 iif $1 lookup local"
    echo "rule add pref 20 oif $1 lookup $2"
    echo "rule add pref 30 from $3 to $4 lookup $2"
    echo "route add $4/$5 dev $1 src $3 table $2"
    echo "neigh replace $4 lladdr $6 dev $1 nud permanent"
}

fabric_rxe() {
    rdma link add "$1" type rxe netdev "$2"
}

# A third device, on a wire into a namespace of its own, where port 4791 is free for a process.
fabric_soft() {
    ip netns add soft && ip link add s0 mtu 9000 type veth peer name s1 mtu 9000 netns soft && ip -batch - <<END &&
addr add 10.0.8.1/24 dev s0
addr add fd00:8::1/64 dev s0 nodad
link set s0 up
END
        ip -n soft -batch - <<END && fabric_rxe rxe_c s0
addr add 10.0.8.2/24 dev s1
addr add fd00:8::2/64 dev s1 nodad
link set s1 up
link set lo up
END
}
