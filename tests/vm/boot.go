package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// bootLimit is ten times what a kernel needs from power-on to its first test and
// from its last test to power-off.
const bootLimit = 3 * time.Minute

// machine is what qemu is started with.
type machine struct {
	kernel Kernel
	initrd string
	disk   string
	dir    string // for console and verdict
	limit  time.Duration
}

// result is what came of a boot.
type result struct {
	verdict []byte
	console []byte
}

// boot runs the machine to its end.
func boot(ctx context.Context, m machine) (result, error) {
	console, port := filepath.Join(m.dir, "console"), filepath.Join(m.dir, "verdict")
	ctx, cancel := context.WithTimeout(ctx, m.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-M", "q35", "-accel", "tcg,thread=multi",
		// qemu 7.2 breaks a 6.12 guest after cmpxchg16b.
		"-cpu", "max,-cx16",
		"-m", "2048", "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "file:"+console, "-serial", "file:"+port,
		"-drive", "file="+m.disk+",format=raw,if=virtio,cache=unsafe",
		"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=",
		"-device", "virtio-rng-pci",
		"-kernel", filepath.Join(m.kernel.Dir, "vmlinuz"), "-initrd", m.initrd,
		// A panic restarts the machine, which ends qemu.
		"-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	runErr := cmd.Run()
	if ctx.Err() != nil {
		runErr = fmt.Errorf("the guest did not end within %s: %w", m.limit, ctx.Err())
	} else if runErr != nil {
		runErr = fmt.Errorf("running qemu: %w\n%s", runErr, said.Bytes())
	}
	var r result
	var consoleErr, verdictErr error
	r.console, consoleErr = os.ReadFile(console)
	r.verdict, verdictErr = os.ReadFile(port)
	return r, errors.Join(runErr, consoleErr, verdictErr)
}
