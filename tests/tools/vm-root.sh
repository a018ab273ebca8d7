#!/bin/sh
# usage: vm-root.sh OUT SUITE
# Brings the root file system of a Debian suite with systemd into OUT for tests/vm:
# root.tar, and the file version with that of systemd. It holds what debootstrap
# takes for the least, systemd, and dbus, without which systemctl cannot do all; no
# udev, no kernel.
#
# Packages come by name from the host that the machine's own sources name.
set -eu

out=$1 suite=$2
tools=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

debootstrap --variant=minbase --include=systemd,dbus "$suite" "$work/root" "$("$tools/apt-mirror.sh" debian)" >"$work/log" 2>&1 || {
	tail -n 20 "$work/log" >&2
	exit 1
}
cd "$work/root"
rm -rf var/cache/apt/* var/lib/apt/lists/* var/log/* usr/share/doc/* usr/share/man/* usr/share/locale/* usr/share/info/*
rm -rf dev proc sys run
mkdir dev proc sys run
mkdir -p "$out.new"
chroot . dpkg-query -W -f='${Version}\n' systemd >"$out.new/version"
tar --numeric-owner -cf "$out.new/root.tar" .
rm -rf "$out"
mv "$out.new" "$out"
