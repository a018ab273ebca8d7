package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// UpdateEnv makes Fetch look for a newer version when it is set.
const UpdateEnv = "VM_UPDATE"

// Kernel is a kernel on disk.
type Kernel struct {
	// Dir holds vmlinuz and modules/.
	Dir string
	// Version is that of the distribution's package.
	Version string
}

// Fetch returns the kernel of g below cache, which is brought there unless it is
// there. root is the module's.
func Fetch(ctx context.Context, root, cache string, g Guest) (Kernel, error) {
	dir := filepath.Join(cache, g.kernel())
	if k, err := open(dir); err == nil && os.Getenv(UpdateEnv) == "" {
		return k, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Kernel{}, fmt.Errorf("bringing kernel %s: %w", g.kernel(), err)
	}
	args := []string{dir, g.Suite}
	if g.OnDemand {
		args = append(args, "ondemand")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "tests/tools/vm-kernel.sh"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return Kernel{}, fmt.Errorf("bringing kernel %s: %w\n%s", g.kernel(), err, out)
	}
	return open(dir)
}

func open(dir string) (Kernel, error) {
	b, err := os.ReadFile(filepath.Join(dir, "version"))
	if err != nil {
		return Kernel{}, fmt.Errorf("opening a kernel: %w", err)
	}
	k := Kernel{Dir: dir, Version: strings.TrimSpace(string(b))}
	if k.Version == "" {
		return Kernel{}, errors.New("opening a kernel: " + dir + " names no version")
	}
	return k, nil
}
