#!/bin/sh
# usage: erofs-utils.sh PREFIX [SUITE]
# Builds mkfs.erofs, fsck.erofs and dump.erofs into PREFIX/bin from the source
# package of a newer Debian suite: Debian 12 has 1.5, whose mkfs knows no --tar.
#
# The suite is looked up with an apt configuration of its own, on the host that
# the machine's own sources name, so the system's package lists stay as they are.
set -eu

prefix=$1
suite=${2:-trixie}
# What apt verified against the archive's signature is verified again here, so
# that every machine builds the same source.
version=1.8.6
sha256=5b221dc3fd6d151425b30534ede46fb7a90dc233a8659cba0372796b0a066547

die() {
	echo "erofs-utils: $*" >&2
	exit 1
}

base=$("$(dirname "$0")/apt-mirror.sh" debian)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/src"
# The sandbox user of apt must be able to write here.
chmod -R go+rwX "$work"

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f "$keyring" ] || die "$keyring is missing; install debian-archive-keyring"
echo "deb-src [signed-by=$keyring] $base $suite main" >"$work/sources.list"
cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
CONF
export APT_CONFIG="$work/apt.conf"

apt-get update -qq
cd "$work/src"
apt-get source -qq --download-only "erofs-utils=$(apt-cache showsrc erofs-utils |
	sed -n "s/^Version: \($version.*\)/\1/p" | head -n 1)"
tarball=erofs-utils_$version.orig.tar.gz
[ -f "$tarball" ] || die "$suite has no erofs-utils $version"
echo "$sha256  $tarball" | sha256sum -c --quiet - >/dev/null 2>&1 || die "$tarball is not the source that was pinned"

tar -xf "$tarball"
cd erofs-utils-*/
{
	./autogen.sh
	./configure --prefix="$prefix" --disable-fuse --enable-lz4 --enable-lzma \
		--with-libzstd --without-selinux
	make -j"$(nproc)"
} >"$work/build.log" 2>&1 || {
	tail -n 40 "$work/build.log" >&2
	die "the build failed"
}
mkdir -p "$prefix/bin"
# mkfs goes last: it is the file that make looks for.
for tool in fsck/fsck.erofs dump/dump.erofs mkfs/mkfs.erofs; do
	install -s "$tool" "$prefix/bin/${tool#*/}.new"
	mv "$prefix/bin/${tool#*/}.new" "$prefix/bin/${tool#*/}"
done
"$prefix/bin/mkfs.erofs" --version
