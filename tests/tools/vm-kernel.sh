#!/bin/sh
# usage: vm-kernel.sh OUT SUITE [ondemand]
# Brings a kernel of a Debian suite into OUT for tests/vm: vmlinuz, the modules
# that a guest loads as modules/NN-name.ko, in the order of loading, and the file
# version. With ondemand there is modules-ondemand too, where cachefiles and erofs
# are built again from Debian's own source with the on-demand options on: no Debian
# kernel has them.
#
# Packages come by name from the hosts that the machine's own sources name, with
# lists of their own, so the system's stay as they are. Nothing is installed.
set -eu

out=$1 suite=$2 ondemand=${3:-}
tools=$(cd "$(dirname "$0")" && pwd)
wanted="virtio_pci virtio_blk virtio_net ext4 loop overlay fuse erofs dm_verity"

die() {
	echo "vm-kernel: $*" >&2
	exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/k"
# The sandbox user of apt must be able to write here.
chmod -R go+rwX "$work"

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f "$keyring" ] || die "$keyring is missing; install debian-archive-keyring"
echo "deb [signed-by=$keyring] $("$tools/apt-mirror.sh" debian) $suite main" >"$work/sources.list"
[ "$suite" = sid ] ||
	echo "deb [signed-by=$keyring] $("$tools/apt-mirror.sh" debian-security) $suite-security main" >>"$work/sources.list"
# An old suite is signed for the last time long before it goes.
cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
CONF
export APT_CONFIG="$work/apt.conf"
apt-get update -qq

# The newest ABI is what the metapackage asks for.
image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
[ -n "$image" ] || die "$suite has no linux-image-cloud-amd64"
abi=${image#linux-image-}
version=$(apt-cache policy "$image" | sed -n 's/^ *Candidate: //p')

# From Linux 7 on an image is a few packages that depend on each other.
packages=$image
for p in $(apt-cache depends "$image" | sed -n "s/^ *Depends: \(linux-[a-z]*-$abi\)\$/\1/p"); do
	packages="$packages $p"
done
if [ -n "$ondemand" ]; then
	release=${version%%-*} # 6.1.170
	series=$(echo "$release" | cut -d. -f1,2)
	packages="$packages linux-headers-$abi linux-headers-${abi%-cloud-amd64}-common linux-kbuild-$series linux-source-$series"
fi
cd "$work/debs"
for p in $packages; do
	apt-get download -qq "$p=$version"
done
cd "$work"
for p in $packages; do
	case $p in linux-source-*) ;; *) dpkg-deb -x debs/"$p"_*.deb k ;; esac
done
# Newer suites have /usr/lib/modules only.
[ -d k/lib/modules ] || { mkdir -p k/lib && ln -s ../usr/lib/modules k/lib/modules; }

# modules DIR MODULE...: puts the modules and what they need into DIR of OUT.
modules() {
	to=$out.new/$1
	shift
	mkdir -p "$to"
	depmod -b k "$abi"
	for m in "$@"; do
		modprobe -d k -S "$abi" --show-depends "$m"
	done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' >order
	n=100
	while read -r file; do
		n=$((n + 1))
		name=$(basename "$file" | sed 's/\.ko.*//')
		case $file in
		*.xz) xz -dc "$file" ;;
		*.zst) zstd -dc "$file" ;;
		*) cat "$file" ;;
		esac >"$to/$n-$name.ko"
	done <order
}
rm -rf "$out.new"
# shellcheck disable=SC2086 # a list of names
modules modules $wanted

# build MODULE: builds fs/MODULE of the source and puts it in the place of
# Debian's own.
build() {
	make -j"$(nproc)" -C "k/usr/src/linux-headers-$abi" M="$work/src/fs/$1" CONFIG_DEBUG_INFO_BTF_MODULES= \
		CONFIG_CACHEFILES_ONDEMAND=y CONFIG_EROFS_FS_ONDEMAND=y \
		KCFLAGS="-DCONFIG_CACHEFILES_ONDEMAND=1 -DCONFIG_EROFS_FS_ONDEMAND=1" modules >build.log 2>&1 || {
		tail -n 40 build.log >&2
		die "building $1 failed"
	}
	strip --strip-debug "src/fs/$1/$1.ko"
	rm -f "k/lib/modules/$abi/kernel/fs/$1/$1.ko"*
	cp "src/fs/$1/$1.ko" "k/lib/modules/$abi/kernel/fs/$1/"
}
if [ -n "$ondemand" ]; then
	dpkg-deb --fsys-tarfile debs/linux-source-*.deb | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
		xz -dc | tar -x --strip-components=1 --one-top-level=src --wildcards "*/fs/cachefiles" "*/fs/erofs"
	# No header that modules and kernel share looks at the two options, so these
	# fit the kernel that they are loaded into.
	find "k/usr/src/linux-headers-$abi" -maxdepth 1 -name 'Makefile' -exec sed -i "s#/usr/src/#$work/k/usr/src/#g" {} +
	# kbuild is found by a link to /usr/lib.
	for l in "k/usr/src/linux-headers-$abi"/* "k/usr/src/linux-headers-${abi%-cloud-amd64}-common"/*; do
		to=$(readlink "$l") || continue
		case $to in ../../lib/*) ;; /*) ln -sfn "$work/k$to" "$l" ;; esac
	done
	build cachefiles
	build erofs
	# shellcheck disable=SC2086
	modules modules-ondemand $wanted fscache cachefiles
fi

find k/boot k/usr/lib/modules -name 'vmlinuz*' -type f 2>/dev/null | head -n 1 | while read -r v; do cp "$v" "$out.new/vmlinuz"; done
[ -s "$out.new/vmlinuz" ] || die "$packages bring no vmlinuz"
echo "$version" >"$out.new/version"
rm -rf "$out"
mv "$out.new" "$out"
