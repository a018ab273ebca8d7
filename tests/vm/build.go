package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Builder makes what runs in guests. All but the first process are built as `make
// build` does, so that a build cache is of use: they need the loader and the C library
// of this machine, see loadedWith.
type Builder struct {
	// Root is the module's, Dir where the programs go.
	Root, Dir string
}

// Init builds the first process of guests, which is static.
func (b Builder) Init(ctx context.Context) (string, error) {
	out := filepath.Join(b.Dir, "init")
	return out, b.gocmd(ctx, []string{"CGO_ENABLED=0"}, "build", "-trimpath", "-o", out, "./tests/vm/init")
}

// Commands builds lazyerofs and lazyerofsd into a directory.
func (b Builder) Commands(ctx context.Context) (string, error) {
	out := filepath.Join(b.Dir, "bin") + string(os.PathSeparator)
	return out, b.gocmd(ctx, nil, "build", "-trimpath", "-o", out, "./cmd/...")
}

// GuestTag is the build tag of tests that need the kernel of a guest.
const GuestTag = "guest"

// Tests builds the test binaries of packages, with the tests that are for guests, and
// returns their paths by package. One call of go names them by their last elements, so
// those that share one take another call.
func (b Builder) Tests(ctx context.Context, pkgs []string) (map[string]string, error) {
	binaries := map[string]string{}
	for round := 0; len(pkgs) > 0; round++ {
		out := filepath.Join(b.Dir, fmt.Sprint("tests", round)) + string(os.PathSeparator)
		args := []string{"test", "-c", "-trimpath", "-tags", GuestTag, "-o", out}
		var later []string
		names := map[string]bool{}
		for _, pkg := range pkgs {
			name := path.Base(pkg)
			if names[name] {
				later = append(later, pkg)
				continue
			}
			names[name] = true
			args = append(args, "./"+pkg)
			binaries[pkg] = out + name + ".test"
		}
		if err := os.MkdirAll(out, 0o755); err != nil {
			return nil, err
		}
		if err := b.gocmd(ctx, nil, args...); err != nil {
			return nil, err
		}
		pkgs = later
	}
	return binaries, nil
}

func (b Builder) gocmd(ctx context.Context, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.Root
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// busybox finds the static busybox of this machine and its applets.
func busybox(ctx context.Context) (file string, applets []string, err error) {
	file, err = exec.LookPath("busybox")
	if err != nil {
		return "", nil, fmt.Errorf("guests need a static busybox, run `make vm`: %w", err)
	}
	out, err := exec.CommandContext(ctx, file, "--list").Output()
	if err != nil {
		return "", nil, fmt.Errorf("asking busybox for its applets: %w", err)
	}
	return file, strings.Fields(string(out)), nil
}

// loadedWith are the loader and the libraries of programs of this machine, each at
// the path where it is looked for.
func loadedWith(ctx context.Context, programs ...string) ([]program, error) {
	var list []program
	for _, file := range programs {
		out, err := exec.CommandContext(ctx, "ldd", file).Output()
		if err != nil {
			return nil, fmt.Errorf("asking what %s is loaded with: %w", file, err)
		}
		for _, word := range strings.Fields(string(out)) {
			if p := (program{word, word}); filepath.IsAbs(word) && !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
	}
	return list, nil
}
