# Linux's own tests of what x86 user code can see (tools/testing/selftests/x86), out of Debian's linux-source package for the
# kernel that guests run. Made once:
#
#     selftests-x86/tests/NAME_64, NAME_32   the tests, static; those that open the vDSO by dlopen() are not
#     selftests-x86/lib*                   the C library that these few want
#     selftests-x86.tar                    both, for a guest
#
# Sourced; needs lib/host.sh, lib/fetch.sh and lib/guest.sh.

SELFTESTS_DYNAMIC="test_syscall_vdso_32 test_vsyscall_32 test_vsyscall_64 vdso_restorer_32"

# selftests_build SOURCE OUTPUT: compile all; a test that does not compile is an error.
selftests_build() {
    local make=(make -C "$1/tools/testing/selftests/x86" "OUTPUT=$2" KHDR_INCLUDES= -s)
    # shellcheck disable=SC2086
    "${make[@]}" CC=gcc $(printf "$2/%s " $SELFTESTS_DYNAMIC)
    "${make[@]}" CC="gcc -static" all
    strip "$2"/*
}

# selftests_libraries PROGRAM ROOT: put the loader that PROGRAM names and the libraries that it needs where that loader looks for
# them under ROOT. Only read, never run (as ldd would): the host may lack 32-bit emulation.
selftests_libraries() {
    local class=-m64 dynamic loader directory name library
    dynamic=$(LC_ALL=C readelf -ldW "$1") || die "$1: readelf cannot read it"
    case $1 in *_32) class=-m32 ;; esac
    loader=$(sed -n 's/.*Requesting program interpreter: \(.*\)]/\1/p' <<<"$dynamic")
    [ -n "$loader" ] || die "$1: names no loader; was it linked statically?"
    install -D -m 755 "$loader" "$2$loader"
    # The loader's own list of directories, one string each: "/lib32/", "/usr/lib32/", "/lib/", "/usr/lib/".
    directory=$(strings -a "$loader" | grep -m 1 -E '^(/[a-z0-9_-]+)+/$') || die "$loader: no list of directories in it"
    for name in $(sed -n 's/.*(NEEDED).*\[\(.*\)]/\1/p' <<<"$dynamic"); do
        library=$(gcc "$class" -print-file-name="$name")
        [ -e "$library" ] || die "$name: gcc $class knows no such library; is gcc-multilib installed?"
        install -D -m 755 "$library" "$2$directory$name"
    done
}

# guest_selftests: have selftests-x86 and selftests-x86.tar; prints the directory.
guest_selftests() {
    local directory package deb work recipe file
    directory=$(guest_dir)/selftests-x86
    package=linux-source-6.1
    deb=$(fetch_deb amd64 "$package")
    recipe="$(basename "$deb") $(sha256sum <"$LIB/selftests.sh")"
    if [ "$(cat "$directory/recipe" 2>/dev/null)" = "$recipe" ]; then
        printf '%s\n' "$directory"
        return
    fi
    say "building Linux's x86 selftests"
    work=$(mktemp -d "$(guest_dir)/selftests.XXXXXX")
    mkdir -p "$work/source" "$work/made/tests"
    dpkg-deb --fsys-tarfile "$deb" | tar xO "./usr/src/$package.tar.xz" | xz -dc | tar x -C "$work/source" --wildcards \
        "$package/tools/testing/selftests/x86" "$package/tools/testing/selftests/*.h" \
        "$package/tools/testing/selftests/lib.mk" "$package/arch/x86/include/asm/desc_defs.h" ||
        die "$deb: the sources cannot be unpacked; delete it and try again"
    # Not ccache, nor flags of somebody's environment: the tests are what the package says.
    run_quiet "$(guest_dir)/selftests.log" env -u CFLAGS -u MAKEFLAGS -u MAKELEVEL bash -e -c ". '$LIB/selftests.sh'; selftests_build \"\$@\"" - \
        "$work/source/$package" "$work/made/tests" || { rm -rf "$work"; die "the selftests do not build"; }
    for file in $SELFTESTS_DYNAMIC; do
        selftests_libraries "$work/made/tests/$file" "$work/made"
    done
    printf '%s\n' "$recipe" >"$work/made/recipe"
    tar -C "$work/made" -cf "$directory.tar.new" .
    mv "$directory.tar.new" "$directory.tar"
    rm -rf "$directory"
    mv "$work/made" "$directory"
    rm -rf "$work"
    printf '%s\n' "$directory"
}
