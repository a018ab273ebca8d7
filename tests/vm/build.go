package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Builder makes what runs in guests: static programs of this module.
type Builder struct {
	// Root is the module's, Dir where the programs go.
	Root, Dir string
}

// Init builds the first process of guests.
func (b Builder) Init(ctx context.Context) (string, error) {
	out := filepath.Join(b.Dir, "init")
	return out, b.gocmd(ctx, "build", "-o", out, "./tests/vm/init")
}

// Commands builds lazyerofs and lazyerofsd into a directory.
func (b Builder) Commands(ctx context.Context) (string, error) {
	out := filepath.Join(b.Dir, "bin") + string(os.PathSeparator)
	return out, b.gocmd(ctx, "build", "-o", out, "./cmd/...")
}

// GuestTag is the build tag of tests that need the kernel of a guest.
const GuestTag = "guest"

// Test builds the test binary of a package, with the tests that are for guests.
func (b Builder) Test(ctx context.Context, pkg string) (string, error) {
	out := filepath.Join(b.Dir, strings.ReplaceAll(pkg, "/", "-")+".test")
	return out, b.gocmd(ctx, "test", "-c", "-tags", GuestTag, "-o", out, "./"+pkg)
}

func (b Builder) gocmd(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.Root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// busybox finds the static busybox of this machine and its applets.
func busybox(ctx context.Context) (path string, applets []string, err error) {
	path, err = exec.LookPath("busybox")
	if err != nil {
		return "", nil, fmt.Errorf("guests need a static busybox, run `make vm`: %w", err)
	}
	out, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return "", nil, fmt.Errorf("asking busybox for its applets: %w", err)
	}
	return path, strings.Fields(string(out)), nil
}
