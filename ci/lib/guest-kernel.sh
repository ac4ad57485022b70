# shellcheck shell=bash
# Gets the packages of the guest's kernel. By default they are the distribution's own, from the archives that apt
# knows here. SAN_RXE_KERNEL names another package, or an archive that is asked without telling the host's apt of it:
#   backports   the newer kernel of this Debian release
#   ubuntu      Ubuntu 24.04's, which has the modules that Debian leaves out (siw, a soft iWARP device)
# Sourced by guest-image.sh; needs common.sh and packages.sh.

guest_ubuntu=http://archive.ubuntu.com/ubuntu
# Debian has no package of Ubuntu's keys, so this one is known by its checksum.
guest_ubuntu_keys=pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb
guest_ubuntu_keys_sha256=36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8

# guest_fetch_kernel DIR: the packages of the kernel and its modules, into DIR.
guest_fetch_kernel() {
    local dir=$1 wanted=${SAN_RXE_KERNEL:-} package version extra
    # Options of apt, when another archive is asked.
    local -a guest_apt=()
    case $wanted in
        backports)
            # shellcheck disable=SC1091
            guest_archive "$dir" "deb http://deb.debian.org/debian $(. /etc/os-release && echo "$VERSION_CODENAME")-backports main" || return 1
            wanted=
            ;;
        ubuntu)
            guest_keys "$dir" || return 1
            guest_archive "$dir" "deb [signed-by=$dir/keys.gpg] $guest_ubuntu noble-updates main" || return 1
            wanted=
            ;;
    esac
    package=${wanted:-$(guest_kernel_package)} && [ -n "$package" ] || return 1
    version=${package#linux-image-}
    version=${version#unsigned-}
    guest_download "$dir" "$package" || return 1
    # Where modules have packages of their own (Ubuntu).
    for extra in "linux-modules-$version" "linux-modules-extra-$version"; do
        ! apt-cache "${guest_apt[@]}" show "$extra" >/dev/null 2>&1 || guest_download "$dir" "$extra" || return 1
    done
}

# The package with the kernel itself: what the distribution's meta package asks for.
guest_kernel_package() {
    local meta
    for meta in linux-image-amd64 linux-image-generic; do
        apt-cache "${guest_apt[@]}" depends "$meta" 2>/dev/null |
            sed -n 's/^[ |]*Depends: \(linux-image-[^ ]*[0-9][^ ]*\)$/\1/p' | head -n 1 | grep . && return
    done
    return 1
}

# guest_download DIR PACKAGE
guest_download() {
    (cd "$1" && apt-get -q -o APT::Sandbox::User= "${guest_apt[@]}" download "$2" >/dev/null)
}

# guest_archive DIR LINE: sets guest_apt so that apt knows the archive of LINE and no other, with lists in DIR.
guest_archive() {
    mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial"
    echo "$2" >"$1/apt/sources.list"
    guest_apt=(-o "Dir::Etc::sourcelist=$1/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$1/apt/lists" -o "Dir::Cache=$1/apt/cache" -o APT::Sandbox::User=)
    apt-get -q "${guest_apt[@]}" update >/dev/null
}

# guest_keys DIR: DIR/keys.gpg, the keys of Ubuntu's archive.
guest_keys() {
    local deb=$1/keys.archive
    wget -q -O "$deb" "$guest_ubuntu/$guest_ubuntu_keys" && echo "$guest_ubuntu_keys_sha256  $deb" | sha256sum -c --quiet &&
        dpkg --fsys-tarfile "$deb" | tar -xO ./usr/share/keyrings/ubuntu-archive-keyring.gpg >"$1/keys.gpg"
}
