package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

const (
	// startLimit is ten times what a kernel needs from power-on to its first test.
	startLimit = 2 * time.Minute
	// endLimit is the same for power-off.
	endLimit = time.Minute
	// starts is how often a machine is switched on that does not come up: on a host
	// whose processors are busy, an emulated timer can be so late that the kernel
	// gives up on it. Nothing of ours has run then.
	starts = 3
)

// errNotUp reports a kernel that did not get to its first process.
var errNotUp = errors.New("the kernel did not come up")

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
func boot(ctx context.Context, m machine) (r result, err error) {
	for range starts {
		r, err = bootOnce(ctx, m)
		if !errors.Is(err, errNotUp) {
			break
		}
	}
	return r, err
}

// watch ends a machine that does not come up.
func watch(ctx context.Context, port string, stop context.CancelCauseFunc) {
	late := time.NewTimer(startLimit)
	defer late.Stop()
	select {
	case <-ctx.Done():
		return
	case <-late.C:
	}
	if st, err := os.Stat(port); err != nil || st.Size() == 0 {
		stop(fmt.Errorf("%w within %s", errNotUp, startLimit))
	}
}

func bootOnce(ctx context.Context, m machine) (result, error) {
	console, port := filepath.Join(m.dir, "console"), filepath.Join(m.dir, "verdict")
	if err := os.RemoveAll(port); err != nil {
		return result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, m.limit)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { watch(ctx, port, stop) })
	defer watcher.Wait()
	defer stop(nil)
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
		// Periodic ticks: one-shot timers get lost when the host is busy.
		"-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on no_timer_check nohz=off highres=off")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	runErr := cmd.Run()
	if ctx.Err() != nil {
		runErr = context.Cause(ctx)
		if !errors.Is(runErr, errNotUp) {
			runErr = fmt.Errorf("the guest did not end within %s: %w", m.limit, runErr)
		}
	} else if runErr != nil {
		runErr = fmt.Errorf("running qemu: %w\n%s", runErr, said.Bytes())
	}
	var r result
	var consoleErr, verdictErr error
	r.console, consoleErr = os.ReadFile(console)
	r.verdict, verdictErr = os.ReadFile(port)
	return r, errors.Join(runErr, consoleErr, verdictErr)
}
