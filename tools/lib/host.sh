# The host's side of setting up: messages, and the Debian packages that are needed. Sourced by tools/quickstart and
# tools/check; needs bash. The package lists stand here once.

# A failure inside $(...) is a failure.
shopt -s inherit_errexit

PACKAGES_BUILD=(
    cmake ninja-build gcc libc6-dev pkg-config
    libzydis-dev libslirp-dev liburing-dev libcjson-dev libseccomp-dev libsodium-dev libxxhash-dev libelf-dev llvm-19-dev
    zlib1g-dev liblzma-dev libzstd-dev liblz4-dev
)
PACKAGES_GUEST=(apt dpkg debian-archive-keyring ca-certificates cpio gzip xz-utils kmod)
PACKAGES_DISK=(mmdebstrap e2fsprogs uidmap util-linux)
PACKAGES_TEST=(
    python3 python3-psutil llvm-14-tools util-linux bsdutils procps make gcc-multilib
    clang-14 libclang-rt-14-dev clang-format-14 clang-tidy-14
)

say() {
    printf '\033[1m==>\033[0m %s\n' "$*" >&2
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# run_quiet LOG COMMAND...: the command's output goes to LOG, and its end is shown only when the command fails.
run_quiet() {
    local log=$1 status=0
    shift
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        tail -n 30 "$log" >&2
        printf '%s: "%s" failed; its output is in %s\n' "${0##*/}" "$*" "$log" >&2
    fi
    return "$status"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -- "$@"
    fi
}

# The directory for what is fetched and made for guests. It is a cache: deleting it costs time, nothing else.
guest_dir() {
    printf '%s\n' "${NESTOR_GUESTS:-${XDG_CACHE_HOME:-${HOME:-/var/tmp}/.cache}/nestor/guests}"
}

# need_packages PACKAGE...: install those that are missing; asks for root only when some are.
need_packages() {
    local missing=() package log
    command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
        die "no apt-get on this host: these tools set up Debian 12; elsewhere install the like of: $*"
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        die "missing packages, and neither root nor sudo; as root run: apt-get install ${missing[*]}"
    fi
    say "installing Debian packages: ${missing[*]}"
    log=$(mktemp "${TMPDIR:-/tmp}/nestor-apt.XXXXXX")
    # An index that fails to refresh may still serve: whether the packages can be had decides.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y update >"$log" 2>&1 </dev/null || true
    run_quiet "$log" as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
        -o APT::Install-Recommends=false -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 \
        install "${missing[@]}" || die "apt-get could not install: ${missing[*]}"
    rm -f "$log"
}

# build_tree SOURCE BUILD [CMAKE-ARGUMENT...]: configure and build, quietly.
build_tree() {
    local source=$1 build=$2
    shift 2
    mkdir -p "$build"
    run_quiet "$build/configure.log" cmake -S "$source" -B "$build" -G Ninja "$@" || return 1
    run_quiet "$build/build.log" ninja -C "$build" ${NESTOR_JOBS:+-j "$NESTOR_JOBS"}
}
