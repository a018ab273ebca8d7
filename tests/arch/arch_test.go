package arch

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	maxFileLines = 400 // a file that can be read in one sitting
	minTestRatio = 0.8 // lines of test code per line of source
)

func load(t *testing.T) []Package {
	t.Helper()
	pkgs, err := Load(t.Context(), filepath.Join("..", ".."))
	require.NoError(t, err)
	require.NotEmpty(t, pkgs)
	return pkgs
}

func TestImports(t *testing.T) {
	for _, line := range Offences(load(t)) {
		t.Error(line)
	}
}

func TestOffencesAreFound(t *testing.T) {
	pkg := func(path string, imports ...string) Package {
		return Package{Path: path, Imports: imports}
	}
	for _, c := range []struct {
		name string
		pkgs []Package
		want []string
	}{
		{"allowed", []Package{pkg("fs/layer", "fs/remote", "fs/format"), pkg("fs/remote", "fs/chunk"), pkg("fs/format", "fs/remote"), pkg("fs/chunk")}, nil},
		{"direct", []Package{pkg("fs/remote", "fs/cache"), pkg("fs/cache")}, []string{"fs/remote -> fs/cache: "}},
		{
			"through another",
			[]Package{pkg("fs/driver/fanotify", "fs/erofs"), pkg("fs/erofs", "fs/kernel"), pkg("fs/kernel", "fs/cache"), pkg("fs/cache")},
			[]string{"fs/driver/fanotify -> fs/erofs -> fs/kernel -> fs/cache: ", "fs/erofs -> fs/kernel -> fs/cache: ", "fs/kernel -> fs/cache: "},
		},
		{"implementation", []Package{pkg("fs", "fs/format/zstdseek"), pkg("fs/format/zstdseek")}, []string{"fs -> fs/format/zstdseek: "}},
		{"list outside cmd", []Package{pkg("fs/layer", "fs/format/all"), pkg("fs/format/all")}, []string{"fs/layer -> fs/format/all: only cmd knows"}},
		{"list in cmd", []Package{pkg("cmd/lazyerofsd", "fs/format/all"), pkg("fs/format/all", "fs/format/zstdseek"), pkg("fs/format/zstdseek")}, nil},
		{"own subpackage", []Package{pkg("fs/remote", "fs/remote/internal/auth"), pkg("fs/remote/internal/auth")}, nil},
		{"test helper shipped", []Package{pkg("cmd/lazyerofsd", "fs/driver/drivertest"), pkg("fs/driver/drivertest")}, []string{"cmd/lazyerofsd -> fs/driver/drivertest: fs/driver/drivertest is for tests only"}},
		{"unknown", []Package{pkg("misc")}, []string{"misc: no rule"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Offences(c.pkgs)
			require.Len(t, got, len(c.want), "%q", got)
			for i, want := range c.want {
				require.True(t, strings.HasPrefix(got[i], want), "%q does not start with %q", got[i], want)
			}
		})
	}
}

func TestDecodeReportsBrokenPackages(t *testing.T) {
	_, err := decode(strings.NewReader(`{"ImportPath":"` + Module + `/fs/x","Error":{"Err":"no such file"}}`))
	require.ErrorContains(t, err, "fs/x: no such file")
	_, err = decode(strings.NewReader(`{"ImportPath":`))
	require.ErrorContains(t, err, "go list")
}

func TestFileLength(t *testing.T) {
	for _, p := range load(t) {
		for _, f := range append(p.Source, p.Tests...) {
			if n := len(readLines(t, f)); n > maxFileLines {
				t.Errorf("%s has %d lines; split it, the bar is %d", f, n, maxFileLines)
			}
		}
	}
}

// TestRatio counts lines that are neither blank nor only a comment. Helpers
// under tests/ are test code, but not the checks of this package on itself.
func TestRatio(t *testing.T) {
	var source, tests int
	for _, p := range load(t) {
		if p.Path == "tests/arch" {
			continue
		}
		for _, f := range p.Tests {
			tests += codeLines(t, f)
		}
		for _, f := range p.Source {
			if forTests(p.Path) {
				tests += codeLines(t, f)
			} else {
				source += codeLines(t, f)
			}
		}
	}
	t.Logf("%d lines of source, %d lines of test code, ratio %.2f", source, tests, float64(tests)/float64(source))
	if float64(tests) < minTestRatio*float64(source) {
		t.Errorf("%d lines of test code for %d lines of source: the bar is %.1f", tests, source, minTestRatio)
	}
}

func TestEveryPackageStatesItsContract(t *testing.T) {
	for _, p := range load(t) {
		if len(p.Source) == 0 {
			continue
		}
		doc, err := os.ReadFile(filepath.Join(p.Dir, "doc.go"))
		if err != nil {
			t.Errorf("package %s has no doc.go", p.Path)
			continue
		}
		if !regexp.MustCompile(`(?m)^(// (Package|Command) |/\*)`).Match(doc) {
			t.Errorf("%s/doc.go does not start with what the package is", p.Path)
		}
	}
}

func readLines(t *testing.T, file string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	return strings.Split(string(bytes.TrimSuffix(data, []byte("\n"))), "\n")
}

func codeLines(t *testing.T, file string) int {
	t.Helper()
	n := 0
	for _, l := range readLines(t, file) {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "//") {
			n++
		}
	}
	return n
}
