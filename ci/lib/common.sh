# shellcheck shell=bash
# What every script here uses: messages and the way out. Sourced, never run.

warn() {
    printf '%s: %s\n' "ci/${0##*/}" "$*" >&2
}

# die STATUS MESSAGE...
die() {
    local status=$1
    shift
    warn "$@"
    exit "$status"
}

# usage: the comment at the head of the script.
usage() {
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}
