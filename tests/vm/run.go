package vm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lazyerofs/lazyerofs/tests/vm/lazy"
	"github.com/lazyerofs/lazyerofs/tests/vm/probe"
)

// ArgsEnv adds arguments to the tests of packages, while they are written:
// VM_ARGS='-test.run=Laws/one_file'.
const ArgsEnv = "VM_ARGS"

// Host is what boots need of this machine, made once for all guests.
type Host struct {
	// Root is the module's, Cache the folder of kernels, Dir scratch.
	Root, Cache, Dir string

	builder  Builder
	init     string
	commands string
	busybox  string
	applets  []string
}

// NewHost builds what every guest has.
func NewHost(ctx context.Context, root, cache, dir string) (*Host, error) {
	h := &Host{Root: root, Cache: cache, Dir: dir, builder: Builder{Root: root, Dir: dir}}
	var errs [3]error
	h.init, errs[0] = h.builder.Init(ctx)
	h.commands, errs[1] = h.builder.Commands(ctx)
	h.busybox, h.applets, errs[2] = busybox(ctx)
	return h, errors.Join(errs[:]...)
}

// Report is what came of a guest.
type Report struct {
	Kernel Kernel
	// Systemd is the version of systemd in a guest with a Root.
	Systemd string
	// Verdict is nil when there was no boot.
	Verdict *Verdict
	// Console is what the kernel said.
	Console string
}

// Run boots a guest and returns what came of it. The error says why there is no
// verdict; what a verdict says is Verdict.Err.
func (h *Host) Run(ctx context.Context, g Guest) (Report, error) {
	var rep Report
	var err error
	if rep.Kernel, err = Fetch(ctx, h.Root, h.Cache, g); err != nil {
		return rep, err
	}
	dir, err := os.MkdirTemp(h.Dir, g.Name+"-")
	if err != nil {
		return rep, fmt.Errorf("preparing guest %s: %w", g.Name, err)
	}
	defer os.RemoveAll(dir)
	plan := h.plan(g)
	tree := filepath.Join(dir, "tree")
	if g.Root != "" {
		var archive string
		archive, rep.Systemd, err = fetchRoot(ctx, h.Root, h.Cache, g.Root)
		if err == nil {
			err = h.layRoot(ctx, tree, archive)
		}
		if err != nil {
			return rep, fmt.Errorf("preparing guest %s: %w", g.Name, err)
		}
	}
	m, err := h.prepare(ctx, dir, rep.Kernel, plan)
	if err != nil {
		return rep, fmt.Errorf("preparing guest %s: %w", g.Name, err)
	}
	res, err := boot(ctx, m)
	rep.Console = string(res.console)
	var parseErr error
	rep.Verdict, parseErr = ParseVerdict(bytes.NewReader(res.verdict), plan.Nonce)
	if err = errors.Join(err, parseErr); err != nil {
		err = fmt.Errorf("guest %s: %w", g.Name, err)
	}
	return rep, err
}

// plan is what the guest is to do.
func (h *Host) plan(g Guest) Plan {
	p := Plan{Nonce: rand.Text()}
	if g.Root != "" {
		p.Init = systemdInit
	}
	p.Runs = append(p.Runs, Run{
		Package: probePackage,
		Env:     []string{probe.Env + "=" + strings.Join(g.Capabilities, ",")},
	})
	for _, pkg := range g.Packages {
		p.Runs = append(p.Runs, Run{Package: pkg, Args: strings.Fields(os.Getenv(ArgsEnv))})
	}
	if g.Driver != "" {
		p.Runs = append(p.Runs, Run{Package: lazyPackage, Env: []string{lazy.Env + "=" + g.Driver}})
	}
	return p
}

// prepare makes the files of a boot in dir, whose tree may hold a root already.
func (h *Host) prepare(ctx context.Context, dir string, k Kernel, p Plan) (machine, error) {
	m := machine{kernel: k, dir: dir, limit: startLimit + endLimit, initrd: filepath.Join(dir, "initrd"), disk: filepath.Join(dir, "disk")}
	programs := []program{
		{filepath.Join(h.commands, "lazyerofs"), "bin/lazyerofs"},
		{filepath.Join(h.commands, "lazyerofsd"), "bin/lazyerofsd"},
	}
	if p.Init != "" {
		m.limit += rootLimit
		programs = append(programs, program{h.init, rootInit})
	}
	for _, r := range p.Runs {
		m.limit += r.Limit()
		binary, err := h.builder.Test(ctx, r.Package)
		if err != nil {
			return m, err
		}
		data, err := testdata(h.Root, r.Package)
		if err != nil {
			return m, err
		}
		programs = append(append(programs, data...), program{binary, filepath.Join(r.Package, "test")})
	}
	tree := filepath.Join(dir, "tree")
	if err := buildDisk(ctx, m.disk, tree, p, programs); err != nil {
		return m, err
	}
	return m, buildInitrd(m.initrd, k, h.init, h.busybox, h.applets)
}
