package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	// systemdInit is what becomes the first process of a root with systemd.
	systemdInit = "/usr/lib/systemd/systemd"
	// systemdPackage tries the units below unitDir there.
	systemdPackage = "tests/vm/systemd"
	unitDir        = "deploy/systemd"
	// rootInit is our init below SourceRoot, which a unit of ours runs there.
	rootInit = "init"
	// rootLimit is ten times what systemd needs from its start to our unit.
	rootLimit = 10 * time.Minute
)

// rootUnits are the units of ours: the target that is booted into, and what runs
// the tests. Nothing else is wanted by that target, no login and no timer.
var rootUnits = map[string]string{
	"vm.target": `[Unit]
Description=Tests in this guest
Requires=basic.target vm.service
After=basic.target
AllowIsolate=yes
`,
	"vm.service": `[Unit]
Description=Carries out the plan and restarts the machine

[Service]
Type=oneshot
ExecStart=` + DiskRoot + "/" + SourceRoot + "/" + rootInit + `
Environment=HOME=/root TMPDIR=` + DiskRoot + `/tmp PATH=` + DiskRoot + "/" + SourceRoot + `/bin:/usr/local/bin:/usr/sbin:/usr/bin
TimeoutStartSec=infinity
StandardError=journal+console
`,
}

// masked are units that a guest can do without. tmp.mount would put what tests
// write on a tmpfs, which takes no pre-content marks.
var masked = []string{
	"tmp.mount", "ldconfig.service", "systemd-firstboot.service", "systemd-journal-catalog-update.service",
	"systemd-update-done.service", "systemd-tmpfiles-clean.timer", "systemd-binfmt.service", "systemd-random-seed.service",
	"systemd-sysusers.service", "systemd-journal-flush.service", "systemd-modules-load.service", "proc-sys-fs-binfmt_misc.automount",
}

// fetchRoot returns the archive of the root file system of a Debian suite below
// cache and the version of systemd in it; it is brought there unless it is there.
// module is the module's root.
func fetchRoot(ctx context.Context, module, cache, suite string) (archive, version string, err error) {
	dir, err := bring(ctx, module, cache, "root-"+suite, "vm-root.sh", suite)
	if err != nil {
		return "", "", fmt.Errorf("bringing the root of %s: %w", suite, err)
	}
	version, err = versionOf(dir)
	return filepath.Join(dir, "root.tar"), version, err
}

// layRoot unpacks archive into tree and installs the commands, the units as the
// repository has them, and what makes the guest run its plan.
func (h *Host) layRoot(ctx context.Context, tree, archive string) error {
	units := filepath.Join(tree, "etc/systemd/system")
	bin := filepath.Join(tree, "usr/local/bin")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return fmt.Errorf("laying out a root: %w", err)
	}
	out, err := exec.CommandContext(ctx, "tar", "--numeric-owner", "-C", tree, "-xf", archive).CombinedOutput()
	if err != nil {
		return fmt.Errorf("laying out a root: %w\n%s", err, out)
	}
	err = errors.Join(os.MkdirAll(units, 0o755), os.MkdirAll(bin, 0o755))
	for name, text := range rootUnits {
		err = errors.Join(err, os.WriteFile(filepath.Join(units, name), []byte(text), 0o644))
	}
	for _, name := range masked {
		err = errors.Join(err, os.Symlink("/dev/null", filepath.Join(units, name)))
	}
	err = errors.Join(err,
		os.Symlink("vm.target", filepath.Join(units, "default.target")),
		// What is the data disk elsewhere is the root here.
		os.Symlink(".", filepath.Join(tree, DiskRoot)))
	ours, globErr := filepath.Glob(filepath.Join(h.Root, unitDir, "lazyerofsd*"))
	err = errors.Join(err, globErr)
	for _, from := range ours {
		err = errors.Join(err, copyFile(from, filepath.Join(units, filepath.Base(from)), 0o644))
	}
	for _, name := range []string{"lazyerofs", "lazyerofsd", "containerd", "ctr"} {
		err = errors.Join(err, copyFile(filepath.Join(h.commands, name), filepath.Join(bin, name), 0o755))
	}
	err = errors.Join(err, h.layContainerd(ctx, tree))
	if err != nil {
		return fmt.Errorf("laying out a root: %w", err)
	}
	return nil
}

func copyFile(from, to string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, mode)
}
