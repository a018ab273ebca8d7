package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// Root is the directory of go.mod, found upward from the working directory:
// go test starts a test in its package's directory.
var Root = sync.OnceValues(func() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the module: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod above the working directory; run inside the source tree")
		}
		dir = parent
	}
})

// Cache is the directory below Root in which tools and images are kept between
// runs; `make clean` removes it.
func Cache() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, ".cache"), nil
}

// toolDirs are the patterns below Root in which the targets of the Makefile
// leave tools.
var toolDirs = []string{"bin", ".cache/containerd-*", ".cache/buildkit-*", ".cache/tools/bin"}

// Tool finds a program: our own, then what the Makefile built, then PATH.
func Tool(name string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	for _, pattern := range toolDirs {
		found, err := filepath.Glob(filepath.Join(root, pattern, name))
		if err != nil {
			return "", fmt.Errorf("finding %s: %w", name, err)
		}
		if len(found) > 0 {
			return found[len(found)-1], nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither in the source tree nor in PATH; run `make deps containerd buildkit tools build`", name)
	}
	return path, nil
}

// BuildExample builds tests/examples/containerd, a containerd with lazyerofs in it, as
// the file out.
func BuildExample(ctx context.Context, out string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-C", "tests/examples/containerd", "-trimpath",
		"-tags", "no_btrfs no_devmapper no_zfs no_cri no_tracing", "-o", out, ".")
	cmd.Dir = root
	if words, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the example containerd: %w: %s", err, words)
	}
	return nil
}
