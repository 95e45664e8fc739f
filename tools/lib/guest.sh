# Making guests from Debian's packages: kernels unpacked but never installed, a busybox initramfs, a Debian 12 root disk.
# Everything lands in guest_dir() under stable names and is made once:
#
#     kernels/NAME/vmlinuz, kernels/NAME/modules   NAME: 6.1, 6.12, 686-pae
#     busybox-NAME.cpio.gz                         an initramfs whose init loads virtio drivers and offers a shell
#     memtest86+.bin
#     xen/hypervisor, xen/vmlinuz                  Debian's Xen, and a kernel that can be its first domain
#     debian12.img                                 an ext4 file system, no partition table
#     bench.img                                    the same with real programs to measure and debug: made only when asked for
#
# Sourced; needs lib/host.sh and lib/fetch.sh.

# What the initramfs loads, if the kernel has it as a module; dependencies come along.
GUEST_MODULES="virtio_pci virtio_blk virtio_net virtio_rng virtio_console"
DISK_PACKAGES="systemd-sysv,udev,dbus,login,iproute2,iputils-ping,procps,kmod,gcc,libc6-dev,python3,curl,wget,ca-certificates,cron,stress-ng"
BENCH_PACKAGES="$DISK_PACKAGES,xz-utils,libpython3.11-testsuite,redis-server,redis-tools,gdb,nodejs,default-jre-headless"

guest_kernel_package() {
    case $1 in
    6.1) printf 'amd64 linux-image-cloud-amd64\n' ;;
    6.12) printf 'amd64 linux-image-6.12-cloud-amd64\n' ;;
    686-pae) printf 'i386 linux-image-686-pae\n' ;;
    *) die "--kernel $1: unknown; choose 6.1, 6.12 or 686-pae" ;;
    esac
}

# guest_kernel NAME: have kernels/NAME; prints its directory.
guest_kernel() {
    local name=$1 wanted package directory deb stamp
    directory=$(guest_dir)/kernels/$name
    wanted=$(guest_kernel_package "$name")
    if [ -s "$directory/vmlinuz" ] && [ -n "$(find "$directory/stamp" -mtime -7 2>/dev/null)" ]; then
        printf '%s\n' "$directory"
        return
    fi
    # Two words: the architecture and the metapackage.
    # shellcheck disable=SC2086
    if ! package=$(fetch_resolve $wanted) || ! deb=$(fetch_deb "${wanted%% *}" "$package"); then
        [ -s "$directory/vmlinuz" ] || die "the kernel $name cannot be had"
        say "going on with the kernel $name from before"
        printf '%s\n' "$directory"
        return
    fi
    stamp=$(basename "$deb")
    if [ "$(cat "$directory/stamp" 2>/dev/null)" = "$stamp" ]; then
        touch "$directory/stamp"
    else
        rm -rf "$directory" "$directory.new"
        mkdir -p "$directory.new"
        dpkg-deb -x "$deb" "$directory.new/root" || die "$deb: cannot be unpacked; delete it and try again"
        mv "$directory.new"/root/boot/vmlinuz-* "$directory.new/vmlinuz"
        mv "$directory.new/root/lib/modules" "$directory.new/modules"
        rm -rf "$directory.new/root"
        printf '%s\n' "$stamp" >"$directory.new/stamp"
        mv "$directory.new" "$directory"
    fi
    printf '%s\n' "$directory"
}

# guest_module_list KERNEL-DIRECTORY: the module files to load, in order, one path each.
guest_module_list() {
    local tree version
    version=$(ls "$1/modules")
    tree=$(mktemp -d)
    mkdir -p "$tree/lib"
    ln -s "$1/modules" "$tree/lib/modules"
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$tree" "$version"
    for module in $GUEST_MODULES; do
        PATH=$PATH:/usr/sbin:/sbin modprobe -d "$tree" -S "$version" --show-depends "$module" 2>/dev/null || true
    done | awk -v from="$tree/lib/modules" -v to="$1/modules" \
        '$1 == "insmod" { sub(from, to, $2); if (!seen[$2]++) print $2 }'
    rm -rf "$tree"
}

# guest_initramfs NAME: have busybox-NAME.cpio.gz for that kernel; prints its path.
guest_initramfs() {
    local name=$1 kernel image arch=amd64 busybox work module number=100
    kernel=$(guest_kernel "$name")
    image=$(guest_dir)/busybox-$name.cpio.gz
    if [ "$image" -nt "$kernel/stamp" ] && [ "$image" -nt "$LIB/init.sh" ] && [ "$image" -nt "$LIB/guest.sh" ]; then
        printf '%s\n' "$image"
        return
    fi
    [ "$name" = 686-pae ] && arch=i386
    busybox=$(fetch_deb "$arch" busybox-static)
    work=$(mktemp -d)
    mkdir -p "$work"/root/{bin,dev,proc,sys,tmp,mnt,etc,modules} "$work/busybox"
    dpkg-deb -x "$busybox" "$work/busybox"
    cp "$work/busybox/bin/busybox" "$work/root/bin/busybox"
    install -m 755 "$LIB/init.sh" "$work/root/init"
    install -m 755 "$LIB/udhcpc.sh" "$work/root/etc/udhcpc.sh"
    for module in $(guest_module_list "$kernel"); do
        # Numbered, because the loading order is the dependency order; unpacked, because busybox may not know xz.
        number=$((number + 1))
        case $module in
        *.xz) xz -dc "$module" >"$work/root/modules/$number-$(basename "$module" .xz)" ;;
        *) cp "$module" "$work/root/modules/$number-$(basename "$module")" ;;
        esac
    done
    (cd "$work/root" && find . | sort | cpio -o -H newc -R 0:0 --quiet | gzip -n -6) >"$image.new"
    mv "$image.new" "$image"
    rm -rf "$work"
    printf '%s\n' "$image"
}

# guest_memtest: have memtest86+.bin; prints its path.
guest_memtest() {
    local image deb work
    image=$(guest_dir)/memtest86+.bin
    if [ ! -s "$image" ]; then
        deb=$(fetch_deb amd64 memtest86+)
        work=$(mktemp -d)
        dpkg-deb -x "$deb" "$work"
        cp "$work"/boot/memtest86+x64.bin "$image.new"
        mv "$image.new" "$image"
        rm -rf "$work"
    fi
    printf '%s\n' "$image"
}

# guest_xen: have xen/; prints its path. The cloud kernels cannot be a first domain.
guest_xen() {
    local directory work deb
    directory=$(guest_dir)/xen
    if [ ! -s "$directory/vmlinuz" ]; then
        work=$(mktemp -d)
        deb=$(fetch_deb amd64 xen-hypervisor-4.17-amd64)
        dpkg-deb -x "$deb" "$work"
        deb=$(fetch_deb amd64 "$(fetch_resolve amd64 linux-image-amd64)")
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work" --wildcards './boot/vmlinuz-*'
        rm -rf "$directory" "$directory.new"
        mkdir "$directory.new"
        gzip -dc "$work"/boot/xen-*-amd64.gz >"$directory.new/hypervisor"
        mv "$work"/boot/vmlinuz-* "$directory.new/vmlinuz"
        mv "$directory.new" "$directory"
        # The kernel's package is large, and nothing else is taken from it.
        rm -rf "$work" "$deb"
    fi
    printf '%s\n' "$directory"
}

# Runs a command where it is root over a range of user ids: as root itself, or in a user namespace.
guest_as_owner() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        unshare --map-auto --map-root-user -- "$@"
    fi
}

# guest_disk: have debian12.img, a Debian 12 root file system; prints its path.
guest_disk() {
    guest_make_disk debian12.img 2G "$DISK_PACKAGES"
}

# guest_bench_disk: have bench.img; prints its path.
guest_bench_disk() {
    guest_make_disk bench.img 6G "$BENCH_PACKAGES"
}

# guest_make_disk FILE SIZE PACKAGES: have that Debian 12 root file system; prints its path. Needs no root where
# unprivileged user namespaces exist, and mounts nothing on the host.
guest_make_disk() {
    local image work mode=unshare log recipe size=$2 packages=$3
    image=$(guest_dir)/$1
    # Made anew when what it is made from changes, not when this file does.
    recipe=$( (printf '%s\n' "$packages"; cat "$LIB/disk_setup.sh") | sha256sum)
    if [ -s "$image" ] && [ "$(cat "$image.recipe" 2>/dev/null)" = "$recipe" ]; then
        printf '%s\n' "$image"
        return
    fi
    if [ "$(id -u)" -eq 0 ]; then
        mode=root
    elif ! unshare --map-auto --map-root-user -- true 2>/dev/null; then
        die "no user namespaces for $(id -un) (kernel.unprivileged_userns_clone, /etc/subuid): run once as root, or allow them"
    fi
    guest_kernel 6.1 >/dev/null
    say "making the Debian 12 root disk $1 (some minutes, once)"
    fetch_refresh amd64
    work=$(mktemp -d "$(guest_dir)/disk.XXXXXX")
    log=$(guest_dir)/disk.log
    cp "$LIB/disk_setup.sh" "$work/"
    # mmdebstrap's user namespace does not own our files: it may read them, no more.
    chmod 755 "$work"
    # The Java runtime's package fails to configure without a directory for its manual pages.
    run_quiet "$log" mmdebstrap --mode="$mode" --variant=minbase --format=tar --include="$packages" \
        --aptopt='Acquire::Retries "3"' --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --essential-hook='mkdir -p "$1/usr/share/man/man1"' \
        --customize-hook="upload $work/disk_setup.sh /disk_setup.sh" \
        --customize-hook='chroot "$1" sh /disk_setup.sh && rm "$1/disk_setup.sh"' \
        bookworm "$work/root.tar" "$(guest_dir)/apt/amd64/etc/sources.list" ||
        { rm -rf "$work"; die "mmdebstrap failed; see $log"; }
    run_quiet "$log" guest_as_owner bash -e -c '
        mkdir "$1/root"
        tar -C "$1/root" --numeric-owner --xattrs --xattrs-include="*" --exclude="./dev/*" -xf "$1/root.tar"
        mkdir -p "$1/root/lib/modules"
        cp -r "$2/modules/." "$1/root/lib/modules/"
        PATH=$PATH:/usr/sbin:/sbin
        truncate -s "$3" "$1/disk.img"
        mke2fs -q -F -t ext4 -L root -E root_owner=0:0 -d "$1/root" "$1/disk.img"
        rm -rf "$1/root"' - "$work" "$(guest_dir)/kernels/6.1" "$size" ||
        { guest_as_owner rm -rf "$work"; die "the disk image could not be made; see $log"; }
    mv "$work/disk.img" "$image"
    printf '%s\n' "$recipe" >"$image.recipe"
    rm -rf "$work"
    printf '%s\n' "$image"
}
