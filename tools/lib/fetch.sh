# Fetching Debian packages by name without installing them. apt works on a state directory of its own (lists, cache,
# architectures), so the host's package system is neither read for versions nor changed, i386 packages included.
# Sourced; needs lib/host.sh.

# The Debian 12 mirrors that the host itself uses, one "URI suite component" each; a suite that it lacks (newer kernels come
# by bookworm-security) is looked for beside its main one. NESTOR_MIRROR=URI overrides.
fetch_sources() {
    local found= suite mirror=${NESTOR_MIRROR:-}
    if [ -z "$mirror" ]; then
        found=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
            awk '$2 ~ /^bookworm(-security|-updates)?$/ && $3 == "main"' | sort -u) || true
        mirror=$(awk '$2 == "bookworm" { print $1; exit }' <<<"$found")
        mirror=${mirror%/}
        [ -n "$mirror" ] || die "apt has no Debian 12 source; set NESTOR_MIRROR=URI to one and try again"
    fi
    for suite in bookworm bookworm-updates bookworm-security; do
        if grep -F " $suite main" <<<"$found"; then
            continue
        fi
        case $suite in
        *-security) printf '%s %s main\n' "${mirror%/debian}/debian-security" "$suite" ;;
        *) printf '%s %s main\n' "$mirror" "$suite" ;;
        esac
    done
}

# fetch_apt ARCH TOOL ARGUMENT...: run apt-get or apt-cache on that architecture's private state.
fetch_apt() {
    local state arch=$1 tool=$2
    state=$(guest_dir)/apt/$arch
    shift 2
    "$tool" -q -o Dir::Etc="$state/etc" -o Dir::Etc::sourcelist="$state/etc/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o Dir::State="$state/state" \
        -o Dir::State::status="$state/state/status" -o Dir::Cache="$state/cache" -o APT::Architecture="$arch" \
        -o APT::Architectures="$arch" -o APT::Sandbox::User=root -o Acquire::Retries=3 \
        -o Acquire::Languages=none -o Debug::NoLocking=1 "$@"
}

# fetch_refresh ARCH: refresh the private lists, at most once a day. One state for each architecture, since apt drops a
# whole release when one architecture's index cannot be had.
fetch_refresh() {
    local state pause
    state=$(guest_dir)/apt/$1
    [ -z "$(find "$state/refreshed" -mtime -1 2>/dev/null)" ] || return 0
    mkdir -p "$state/etc/preferences.d" "$state/etc/apt.conf.d" "$state/state/lists/partial" \
        "$state/cache/archives/partial"
    : >>"$state/state/status"
    say "refreshing the package lists ($1)"
    fetch_sources | sed -E 's|^|deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] |' >"$state/etc/sources.list"
    # A mirror in the middle of its own update fails for one suite, mostly for moments.
    for pause in 3 15 ''; do
        if fetch_apt "$1" apt-get update -o APT::Update::Error-Mode=any >"$state/update.log" 2>&1 </dev/null; then
            touch "$state/refreshed"
            return
        fi
        [ -z "$pause" ] || sleep "$pause"
    done
    # The other suites, or the lists from before, may hold what is wanted; ask again in an hour.
    say "some package lists could not be refreshed (see $state/update.log); going on with the rest"
    touch -d '23 hours ago' "$state/refreshed"
}

# fetch_resolve ARCH PACKAGE: what a metapackage stands for (the newest linux-image-* that it depends on).
fetch_resolve() {
    local real
    fetch_refresh "$1"
    real=$(fetch_apt "$1" apt-cache depends --important "$2" 2>/dev/null |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ && !found { found = $2 } END { print found }') || true
    [ -n "$real" ] || die "$2: no such kernel package in the Debian 12 lists; delete $(guest_dir)/apt and try again"
    printf '%s\n' "$real"
}

# fetch_name ARCH PACKAGE: the name of the newest version's file.
fetch_name() {
    local file
    # "'URI' NAME_VERSION_ARCH.deb SIZE HASH": the name that apt-get download will give it.
    file=$(fetch_apt "$1" apt-get download --print-uris "$2" 2>/dev/null | awk 'END { print $2 }') || true
    [ -n "$file" ] || die "$2: no such package in the Debian 12 lists; delete $(guest_dir)/apt and try again"
    printf '%s\n' "$file"
}

# fetch_deb ARCH PACKAGE: download into the cache unless its version is there; prints the .deb's path.
fetch_deb() {
    local directory file again
    directory=$(guest_dir)/debs
    mkdir -p "$directory"
    fetch_refresh "$1"
    for again in 1 ''; do
        file=$(fetch_name "$1" "$2")
        [ ! -s "$directory/$file" ] || break
        say "downloading $file"
        (cd "$directory" && fetch_apt "$1" apt-get download "$2" >download.log 2>&1 </dev/null) && break
        if [ -z "$again" ]; then
            tail -n 5 "$directory/download.log" >&2
            die "$2: the download failed"
        fi
        # The mirror may have replaced that version since the lists were read.
        rm -f "$(guest_dir)/apt/$1/refreshed"
        fetch_refresh "$1"
    done
    [ -s "$directory/$file" ] || die "$2: apt-get download left no $directory/$file"
    printf '%s\n' "$directory/$file"
}
