# What ./quickstart and ./check need of the machine. Sourced, not run.

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" -eq 0 ] || fail "needs root for mounts, containers and network namespaces; run: sudo $0"
}

need_debian() {
    command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
        fail "installs its packages with apt-get; on a system other than Debian 12 see README.md for what to install"
}

# sudo forgets the PATH of the user who installed Rust.
need_cargo() {
    local home
    for home in "${CARGO_HOME:-}" "$HOME/.cargo" "${SUDO_USER:+$(getent passwd "$SUDO_USER" | cut -d: -f6)/.cargo}"; do
        command -v cargo >/dev/null && return
        [ -n "$home" ] && [ -x "$home/bin/cargo" ] && PATH="$home/bin:$PATH"
    done
    command -v cargo >/dev/null || fail "cargo is missing; install Rust 1.91 or newer from https://rustup.rs"
}

# Installs those of the named packages that are missing.
need_packages() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ "${#missing[@]}" -eq 0 ] && return
    say "Installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q </dev/null || fail "apt-get update failed; is there a network?"
    apt-get install -q -y --no-install-recommends "${missing[@]}" </dev/null ||
        fail "could not install: ${missing[*]}"
}
