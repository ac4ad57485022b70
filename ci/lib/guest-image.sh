# shellcheck shell=bash
# Makes the kernel and the initial file system of the guest, once, under target/guest. The kernel is the
# distribution's own package, unpacked and never installed. Needs common.sh, packages.sh and $top.
: "${top:?}"
# shellcheck source=ci/lib/guest-kernel.sh
. "$top/ci/lib/guest-kernel.sh"

# What the initial file system loads; everything else is loaded by the guest from guest_modules.
guest_boot_modules="virtio_pci 9pnet_virtio 9p overlay"

# guest_image: sets guest_kernel, guest_initrd and guest_modules (a folder with lib/modules in it).
guest_image() {
    local base=$top/target/guest key image
    [ "$(uname -m)" = x86_64 ] || die 69 "the guest is an x86-64 machine, this host is $(uname -m)"
    mkdir -p "$base"
    key=$(cat "$top/ci/lib/guest-image.sh" "$top/ci/lib/guest-kernel.sh" "$top/ci/guest/init" <(echo "${SAN_RXE_KERNEL:-}") | sha256sum)
    key=${key:0:12}
    image=$(guest_ready_image "$base" "$key") || {
        exec {lock}>"$base/lock"
        flock "$lock"
        image=$(guest_ready_image "$base" "$key") || {
            guest_build_image "$base" "$key"
            image=$(guest_ready_image "$base" "$key") || die 69 "the guest's kernel could not be made"
        }
        exec {lock}>&-
    }
    # shellcheck disable=SC2034 # read by guest-run.sh
    guest_kernel=$image/vmlinuz guest_initrd=$image/initrd guest_modules=$image/root
}

# The image of this key, whichever kernel version it holds.
guest_ready_image() {
    local dir
    for dir in "$1"/image-*-"$2"; do
        [ -e "$dir/complete" ] && echo "$dir" && return 0
    done
    return 1
}

guest_build_image() {
    local base=$1 key=$2 version work
    work=$(mktemp -d "$base/build.XXXXXX")
    warn "getting a kernel for the guest (once)"
    # Old lists name packages that are gone.
    guest_fetch_kernel "$work" 2>/dev/null || { apt_update && guest_fetch_kernel "$work"; } ||
        die 69 "the kernel's package cannot be downloaded (SAN_RXE_KERNEL names another)"
    guest_unpack "$work"
    version=$(ls "$work/root/lib/modules")
    depmod -b "$work/root" "$version" 2>/dev/null
    guest_initrd_tree "$work" "$version"
    (cd "$work/initrd.d" && find . -print0 | cpio --null --create --format=newc --quiet | gzip -1) >"$work/initrd"
    guest_plain_kernel "$work"
    rm -rf "$work"/*.deb "$work"/{apt,keys.gpg,keys.archive} "$work/initrd.d" "$base"/image-*-"$key"
    touch "$work/complete"
    mv "$work" "$base/image-$version-$key"
}

# Of the packages in DIR: DIR/vmlinuz and the part of the modules that a guest without hardware can use.
guest_unpack() {
    local dir=$1 deb
    mkdir "$dir/root"
    for deb in "$dir"/*.deb; do
        dpkg --fsys-tarfile "$deb" | tar -x -C "$dir/root" --wildcards \
            --exclude '*/drivers/net/ethernet' --exclude '*/drivers/net/wireless' \
            '*/boot/vmlinuz-*' '*/modules/*/modules.*' '*/modules/*/kernel/arch' '*/modules/*/kernel/crypto' \
            '*/modules/*/kernel/drivers/infiniband' '*/modules/*/kernel/drivers/net' \
            '*/modules/*/kernel/drivers/virtio' '*/modules/*/kernel/fs' '*/modules/*/kernel/lib' \
            '*/modules/*/kernel/net' 2>/dev/null || true # a package without one of these parts is none the worse
    done
    [ -d "$dir/root/lib/modules" ] || { mkdir -p "$dir/root/lib" && mv "$dir/root/usr/lib/modules" "$dir/root/lib/"; }
    mv "$dir"/root/boot/vmlinuz-* "$dir/vmlinuz"
}

# DIR/initrd.d: busybox, the modules that mount the host's files, in the order to load them, and init.
guest_initrd_tree() {
    local dir=$1 version=$2 tree=$1/initrd.d module file name
    mkdir -p "$tree"/{bin,dev,proc,sys,modules,host,overlay,root}
    cp /bin/busybox "$tree/bin/busybox"
    install -m 755 "$top/ci/guest/init" "$tree/init"
    for module in $guest_boot_modules; do
        modprobe -d "$dir/root" -S "$version" --show-depends "$module" 2>/dev/null
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
        name=$(basename "$file")
        case $file in
            *.xz) xz -dc "$file" >"$tree/modules/${name%.xz}" ;;
            *.zst) zstd -qdc "$file" >"$tree/modules/${name%.zst}" ;;
            *) cp "$file" "$tree/modules/$name" ;;
        esac
        name=${name%.xz}
        echo "${name%.zst}" >>"$tree/modules/order"
    done
}

# Unpacking itself is most of what a compressed kernel does while it boots in emulation: have it unpacked once here,
# if the result is seen to boot.
guest_plain_kernel() {
    local dir=$1 magic tool offset
    while read -r magic tool; do
        offset=$(LC_ALL=C grep -obUaP -m 1 "$magic" "$dir/vmlinuz" | head -n 1 | cut -d : -f 1) || true
        [ -n "$offset" ] || continue
        # Trailing bytes that belong to no archive make the tools complain, after a result that may be whole.
        tail -c "+$((offset + 1))" "$dir/vmlinuz" | $tool -dc >"$dir/vmlinux" 2>/dev/null || true
        if [ -s "$dir/vmlinux" ] && guest_boots 60 "$dir/vmlinux" "$dir/initrd" -accel tcg -cpu max; then
            mv "$dir/vmlinux" "$dir/vmlinuz"
            return
        fi
    done <<'END'
\xfd7zXZ\x00 xz
\x1f\x8b\x08 gzip
\x28\xb5\x2f\xfd zstd
END
    rm -f "$dir/vmlinux"
}

# guest_boots SECONDS KERNEL INITRD QEMU-ARGUMENT...: whether the kernel comes as far as its first process.
guest_boots() {
    local seconds=$1 kernel=$2 initrd=$3
    shift 3
    timeout --foreground --kill-after=2 "$seconds" qemu-system-x86_64 -M pc -nodefaults -display none -no-reboot \
        -m 512 -kernel "$kernel" -initrd "$initrd" -serial stdio -append "console=ttyS0 panic=-1 san.probe" "$@" \
        </dev/null 2>/dev/null | grep -q 'guest: up'
}
