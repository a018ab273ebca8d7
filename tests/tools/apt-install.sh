#!/bin/sh
# Installs those of the named packages that are absent; silent when all are there.
set -eu

missing=
for p in "$@"; do
	if [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" != installed ]; then
		missing="$missing $p"
	fi
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "these packages are needed, and only root can install them:$missing" >&2
	exit 1
fi
echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of package names, split on purpose
apt-get install -qq -y --no-install-recommends $missing >/dev/null
