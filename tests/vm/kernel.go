package vm

import (
	"context"
	"crypto/sha256"
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
	// Dir holds vmlinuz.
	Dir string
	// Modules is the directory of the modules that are loaded.
	Modules string
	// Version is that of the distribution's package.
	Version string
}

// Fetch returns the kernel of g below cache, which is brought there unless it is
// there. root is the module's.
func Fetch(ctx context.Context, root, cache string, g Guest) (Kernel, error) {
	own, err := g.owner()
	if err != nil {
		return Kernel{}, err
	}
	args := []string{own.Suite}
	if own.OnDemand {
		args = append(args, "ondemand")
	}
	dir, err := bring(ctx, root, cache, own.Name, "vm-kernel.sh", args...)
	if err != nil {
		return Kernel{}, fmt.Errorf("bringing kernel %s: %w", own.Name, err)
	}
	k := Kernel{Dir: dir, Modules: filepath.Join(dir, "modules")}
	if g.OnDemand {
		k.Modules = filepath.Join(dir, "modules-ondemand")
	}
	k.Version, err = versionOf(dir)
	return k, err
}

// bring has a script of tests/tools make the directory name below cache, unless it
// has done so, and returns it. The script is called with the directory and args, and
// writes a file version there.
func bring(ctx context.Context, root, cache, name, script string, args ...string) (string, error) {
	script = filepath.Join(root, "tests/tools", script)
	text, err := os.ReadFile(script)
	if err != nil {
		return "", err
	}
	// What another version of the script made may be something else.
	sum := sha256.Sum256(text)
	dir := filepath.Join(cache, fmt.Sprintf("%s-%x", name, sum[:4]))
	if _, err := versionOf(dir); err == nil && os.Getenv(UpdateEnv) == "" {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, script, append([]string{dir}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return dir, nil
}

// versionOf reads the file of that name in a directory of bring.
func versionOf(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "version"))
	if err != nil {
		return "", err
	}
	v := strings.TrimSpace(string(b))
	if v == "" {
		return "", errors.New(dir + " names no version")
	}
	return v, nil
}
