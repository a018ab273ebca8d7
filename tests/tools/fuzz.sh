#!/bin/sh
# usage: fuzz.sh DURATION
# Fuzzes every target of every package for DURATION, one more at a time than there
# are processors, since each begins with building and waiting. Making an
# interesting input smaller is cut short: by default it takes up to a minute, in
# which nothing else is tried. Exits with 1 if any target failed, after all have
# run; what failed is printed as it ends.
set -eu

duration=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}} {{.ImportPath}}{{end}}' ./... |
	while read -r dir pkg; do
		# Only packages whose tests name a target are compiled for the list.
		grep -qs '^func Fuzz' "$dir"/*_test.go || continue
		go test -list '^Fuzz' "$pkg" | sed -n "s|^Fuzz|$pkg Fuzz|p"
	done >"$work/list"
[ -s "$work/list" ] || { echo "no fuzz target found" >&2; exit 1; }

cat >"$work/one" <<EOF
#!/bin/sh
out=$work/\$(echo "\$1 \$2" | tr '/ ' '__')
# The end of the time, when it comes while an input is being tried, is reported as a
# failure of its own: no input is written then, and the
# report is one line.
ended() {
	! grep -q 'Failing input' "\$out" && grep -A 1 '^--- FAIL' "\$out" | grep -q '^    context deadline exceeded\$'
}
if go test -run '^\$' -fuzz "^\$2\\\$" -fuzztime $duration -fuzzminimizetime 50x -parallel 1 -vet=off "\$1" >"\$out" 2>&1 || ended; then
	echo "fuzzed \$1 \$2: \$(grep elapsed "\$out" | tail -n 1)"
else
	echo "FAILED \$1 \$2"
	cat "\$out"
	exit 1
fi
EOF
chmod +x "$work/one"
xargs -n 2 -P "$(($(nproc) + 1))" "$work/one" <"$work/list"
