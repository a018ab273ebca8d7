package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

const (
	// containerdModule has the unit that people install with its binaries.
	containerdModule = "github.com/containerd/containerd/v2"
	containerdUnit   = "containerd.service"
	// inProcess is how it is configured.
	inProcess = "deploy/containerd/in-process.toml"
)

// containerdConfig includes a directory, as the head of inProcess says.
const containerdConfig = `version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
`

// Containerd builds a containerd with lazyerofs in it into the directory of Commands,
// and adds the pinned ctr.
func (b Builder) Containerd(ctx context.Context) error {
	bin := filepath.Join(b.Dir, "bin")
	ctr, err := testenv.Tool("ctr")
	if err != nil {
		return err
	}
	return errors.Join(
		testenv.BuildExample(ctx, filepath.Join(bin, "containerd")),
		copyFile(ctr, filepath.Join(bin, "ctr"), 0o755))
}

// layContainerd installs into tree the unit that containerd comes with, our drop-in
// for it and the configuration.
func (h *Host) layContainerd(ctx context.Context, tree string) error {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", containerdModule)
	cmd.Dir = h.Root
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("looking for the source of containerd: %w", err)
	}
	units := filepath.Join(tree, "etc/systemd/system")
	etc := filepath.Join(tree, "etc/containerd")
	dropIn := containerdUnit + ".d"
	err = errors.Join(os.MkdirAll(filepath.Join(units, dropIn), 0o755), os.MkdirAll(filepath.Join(etc, "conf.d"), 0o755))
	for from, to := range map[string]string{
		filepath.Join(strings.TrimSpace(string(out)), containerdUnit): filepath.Join(units, containerdUnit),
		filepath.Join(h.Root, unitDir, dropIn, "lazyerofs.conf"):      filepath.Join(units, dropIn, "lazyerofs.conf"),
		filepath.Join(h.Root, unitDir, "containerd-store.target"):     filepath.Join(units, "containerd-store.target"),
		filepath.Join(h.Root, inProcess):                              filepath.Join(etc, "conf.d", "lazyerofs.toml"),
	} {
		err = errors.Join(err, copyFile(from, to, 0o644))
	}
	return errors.Join(err, os.WriteFile(filepath.Join(etc, "config.toml"), []byte(containerdConfig), 0o644))
}
