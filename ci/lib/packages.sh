# shellcheck shell=bash
# Gets packages of the distribution: Debian and Ubuntu, as root or through sudo. Needs common.sh.

# as_root CMD...: runs CMD as root, asks for a password only where somebody can type one.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif ! command -v sudo >/dev/null; then
        return 1
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

# missing_packages NAME...: prints those that are not installed.
missing_packages() {
    local name
    for name in "$@"; do
        case $(dpkg-query -W -f '${Status}' "$name" 2>/dev/null) in
            "install ok installed") ;;
            *) echo "$name" ;;
        esac
    done
}

# apt_update: once per run of a script is enough.
apt_update() {
    [ -z "${apt_updated:-}" ] || return 0
    apt_updated=1
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 update >/dev/null
}

# try_packages NAME...: installs what is missing; what apt says is shown only when it fails.
try_packages() {
    local missing log status=0
    command -v dpkg-query apt-get >/dev/null || return 1
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    warn "installing ${missing[*]}"
    log=$(mktemp)
    apt_install "${missing[@]}" >"$log" 2>&1 || { apt_update && apt_install "${missing[@]}"; } >"$log" 2>&1 || status=1
    [ "$status" = 0 ] || tail -n 15 "$log" >&2
    rm -f "$log"
    return "$status"
}

# need_packages NAME...: the same, and without them there is no going on.
need_packages() {
    try_packages "$@" || die 69 "cannot be had here (apt-get, as root or with sudo): $(missing_packages "$@" | tr '\n' ' ')"
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
        install --no-install-recommends "$@"
}
