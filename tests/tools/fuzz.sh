#!/bin/sh
# usage: fuzz.sh DURATION
# Fuzzes every target of every package in turn, each for DURATION. Making an
# interesting input smaller is cut short: by default it takes up to a minute, in
# which nothing else is tried.
set -eu

duration=$1
list=$(mktemp)
trap 'rm -f "$list"' EXIT
go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}} {{.ImportPath}}{{end}}' ./... |
	while read -r dir pkg; do
		# Only packages whose tests name a target are compiled for the list.
		grep -qs '^func Fuzz' "$dir"/*_test.go || continue
		go test -list '^Fuzz' "$pkg" | sed -n "s|^Fuzz|$pkg Fuzz|p"
	done >"$list"
[ -s "$list" ] || { echo "no fuzz target found" >&2; exit 1; }
while read -r pkg target; do
	echo "fuzz $pkg $target $duration"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$duration" -fuzzminimizetime 50x "$pkg"
done <"$list"
