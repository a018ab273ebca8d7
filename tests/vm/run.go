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
	b := h.brought[g.Name]
	rep := Report{Kernel: b.kernel, Systemd: b.systemd}
	if b.err != nil {
		return rep, b.err
	}
	dir, err := os.MkdirTemp(h.Dir, g.Name+"-")
	if err != nil {
		return rep, fmt.Errorf("preparing guest %s: %w", g.Name, err)
	}
	defer os.RemoveAll(dir)
	plan := h.plan(g)
	tree := filepath.Join(dir, "tree")
	if g.Root != "" {
		if err := h.layRoot(ctx, tree, b.root); err != nil {
			return rep, fmt.Errorf("preparing guest %s: %w", g.Name, err)
		}
	}
	m, err := h.prepare(ctx, dir, rep.Kernel, g.features(), plan)
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
	probes := Run{Package: probePackage, Env: []string{probe.Env + "=" + strings.Join(g.Capabilities, ",")}}
	if g.Verity {
		probes.Env = append(probes.Env, probe.VerityEnv+"=1")
	}
	p.Runs = append(p.Runs, probes)
	for _, pkg := range g.Packages {
		r := Run{Package: pkg, Args: strings.Fields(os.Getenv(ArgsEnv))}
		if g.Skip != "" {
			r.Args = append(r.Args, "-test.skip="+g.Skip)
		}
		p.Runs = append(p.Runs, r)
	}
	if g.Driver != "" {
		p.Runs = append(p.Runs, Run{Package: lazyPackage, Env: []string{lazy.Env + "=" + g.Driver}})
	}
	return p
}

// prepare makes the files of a boot in dir, whose tree may hold a root already.
func (h *Host) prepare(ctx context.Context, dir string, k Kernel, features string, p Plan) (machine, error) {
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
		data, err := testdata(h.Root, r.Package)
		if err != nil {
			return m, err
		}
		programs = append(append(programs, data...), program{h.tests[r.Package], filepath.Join(r.Package, "test")})
	}
	tree := filepath.Join(dir, "tree")
	if err := buildDisk(ctx, m.disk, tree, features, p, programs); err != nil {
		return m, err
	}
	return m, buildInitrd(m.initrd, k, h.tools, h.applets)
}
