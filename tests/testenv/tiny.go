package testenv

import "path/filepath"

// Tiny is an image of three small layers, built in a second and without a
// package registry: a static program, a file, and a layer that deletes a file
// and replaces a directory. Its workload prints what is left.
func Tiny() (Recipe, error) {
	root, err := Root()
	if err != nil {
		return Recipe{}, err
	}
	return Recipe{
		Name: "tiny",
		Steps: []Step{
			{Name: "program", Script: "cd " + filepath.Join(root, "tests/testenv/testdata/hello") + `
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOCACHE=$(mktemp -d)
go build -trimpath -o "$ROOT/hello" .
rm -rf "$GOCACHE"
mkdir "$ROOT/etc" "$ROOT/proc" "$ROOT/sys" "$ROOT/dev" "$ROOT/run" "$ROOT/tmp"
`},
			{Name: "files", Script: `mkdir "$ROOT/old"
echo one >"$ROOT/etc/kept"
echo two >"$ROOT/etc/deleted"
echo three >"$ROOT/old/hidden"
ln "$ROOT/etc/kept" "$ROOT/etc/linked"
`},
			{Name: "changes", Script: `rm "$ROOT/etc/deleted"
rm -r "$ROOT/old"
mkdir "$ROOT/old"
echo four >"$ROOT/old/shown"
`},
		},
		Ready: []string{"/hello", "/etc/kept", "/etc/linked", "/etc/deleted", "/old/hidden", "/old/shown"},
	}, nil
}

// TinyOutput is what the workload of Tiny prints.
const TinyOutput = `/etc/kept: one
/etc/linked: one
open /etc/deleted: no such file or directory
open /old/hidden: no such file or directory
/old/shown: four
`
