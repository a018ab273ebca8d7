#!/bin/sh
# usage: apt-mirror.sh NAME
# Prints the first archive in the machine's own apt sources whose path ends in
# NAME (debian, ubuntu), in either of the two syntaxes that apt reads.
set -eu

{
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ ! -f "$f" ] || sed -n 's/^deb \(\[[^]]*\] *\)\{0,1\}\([^ ]*\).*/\2/p' "$f"
	done
	for f in /etc/apt/sources.list.d/*.sources; do
		[ ! -f "$f" ] || sed -n 's/^URIs: *\([^ ]*\).*/\1/p' "$f"
	done
} | grep "/$1/*\$" | head -n 1 | grep . || {
	echo "no archive named $1 in /etc/apt/sources.list or /etc/apt/sources.list.d; add one" >&2
	exit 1
}
