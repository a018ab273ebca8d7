package arch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Package is what the go command says of one package of ours.
type Package struct {
	Path    string   // relative to Module, "" is the root
	Dir     string   // absolute
	Source  []string // absolute paths of non-test Go files
	Tests   []string // absolute paths of test files
	Imports []string // of ours, relative to Module, non-test files only
}

// Load lists every package of the module that holds root.
func Load(ctx context.Context, root string) ([]Package, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-e", "-json=ImportPath,Dir,GoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles,Imports,Error", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing packages of %s: %w: %s", root, err, stderr.String())
	}
	return decode(bytes.NewReader(out))
}

// decode reads the stream of objects that go list writes.
func decode(r io.Reader) ([]Package, error) {
	var all []Package
	dec := json.NewDecoder(r)
	for {
		var p struct {
			ImportPath, Dir                                             string
			GoFiles, IgnoredGoFiles, TestGoFiles, XTestGoFiles, Imports []string
			Error                                                       *struct{ Err string }
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading the output of go list: %w", err)
		}
		if p.Error != nil {
			return nil, fmt.Errorf("package %s: %s", p.ImportPath, p.Error.Err)
		}
		out := Package{Path: relative(p.ImportPath), Dir: p.Dir}
		for _, f := range slices.Concat(p.GoFiles, p.IgnoredGoFiles) {
			out.Source = append(out.Source, filepath.Join(p.Dir, f))
		}
		for _, f := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			out.Tests = append(out.Tests, filepath.Join(p.Dir, f))
		}
		for _, i := range p.Imports {
			if under(i, Module) {
				out.Imports = append(out.Imports, relative(i))
			}
		}
		all = append(all, out)
	}
}

func relative(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, Module), "/")
}

// Offences returns one line for each dependency that no rule allows, with the
// shortest chain of imports that leads to it.
func Offences(pkgs []Package) []string {
	imports := make(map[string][]string, len(pkgs))
	for _, p := range pkgs {
		imports[p.Path] = p.Imports
	}
	var bad []string
	for _, p := range pkgs {
		r, ok := ruleOf(p.Path)
		if !ok {
			bad = append(bad, p.Path+": no rule names this package; add one to tests/arch/rules.go")
			continue
		}
		for _, chain := range chains(p.Path, imports) {
			last := chain[len(chain)-1]
			way := strings.Join(chain, " -> ")
			switch {
			case forTests(last) && !forTests(p.Path):
				bad = append(bad, way+": "+last+" is for tests only")
			case forTests(p.Path), sameUnit(p.Path, last):
			case under(last, "fs/format/all"), under(last, "fs/driver/all"):
				if !slices.Contains(r.allowed, "") {
					bad = append(bad, way+": only cmd knows the list of implementations")
				}
			case !r.allows(last):
				bad = append(bad, way+": "+r.why)
			}
		}
	}
	slices.Sort(bad)
	return bad
}

// sameUnit reports whether b belongs to the same part as a: a part may be
// several folders (an internal package, a sub-format).
func sameUnit(a, b string) bool {
	r, ok := ruleOf(a)
	return ok && r.prefix != "fs" && under(b, r.prefix)
}

// chains returns, for each package that from depends on, the shortest chain of
// imports from it.
func chains(from string, imports map[string][]string) [][]string {
	var out [][]string
	seen := map[string]bool{from: true}
	queue := [][]string{{from}}
	for len(queue) > 0 {
		chain := queue[0]
		queue = queue[1:]
		for _, next := range imports[chain[len(chain)-1]] {
			if seen[next] {
				continue
			}
			seen[next] = true
			longer := append(slices.Clone(chain), next)
			out = append(out, longer)
			queue = append(queue, longer)
		}
	}
	return out
}
