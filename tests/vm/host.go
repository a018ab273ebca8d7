package vm

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
)

// helperName is the program that mounts FUSE for ordinary users.
const helperName = "fusermount3"

// Host is what boots need of this machine, made once for all guests.
type Host struct {
	// Root is the module's, Cache the folder of kernels, Dir scratch.
	Root, Cache, Dir string

	builder  Builder
	init     string
	commands string
	tests    map[string]string // binaries by package
	tools    []program         // init and what else the initramfs has
	applets  []string
	brought  map[string]brought
}

// brought is what was downloaded for a guest, or why it could not be.
type brought struct {
	kernel  Kernel
	root    string // an archive
	systemd string
	err     error
}

// NewHost builds what the guests have and run, and brings their kernels meanwhile:
// one keeps the processors busy, the other the network. That a kernel could not be
// brought is told by Run.
func NewHost(ctx context.Context, root, cache, dir string, guests []Guest) (*Host, error) {
	h := &Host{Root: root, Cache: cache, Dir: dir, builder: Builder{Root: root, Dir: dir}, brought: map[string]brought{}}
	var downloads sync.WaitGroup
	downloads.Go(func() {
		for _, g := range guests {
			h.brought[g.Name] = h.bring(ctx, g)
		}
	})
	err := h.build(ctx, guests)
	downloads.Wait()
	if err != nil {
		return nil, fmt.Errorf("preparing guests: %w", err)
	}
	return h, nil
}

func (h *Host) bring(ctx context.Context, g Guest) (b brought) {
	b.kernel, b.err = Fetch(ctx, h.Root, h.Cache, g)
	if b.err == nil && g.Root != "" {
		b.root, b.systemd, b.err = fetchRoot(ctx, h.Root, h.Cache, g.Root)
	}
	return b
}

func (h *Host) build(ctx context.Context, guests []Guest) error {
	var pkgs []string
	for _, g := range guests {
		for _, r := range h.plan(g).Runs {
			if !slices.Contains(pkgs, r.Package) {
				pkgs = append(pkgs, r.Package)
			}
		}
	}
	var errs [6]error
	h.init, errs[0] = h.builder.Init(ctx)
	h.commands, errs[1] = h.builder.Commands(ctx)
	h.tests, errs[2] = h.builder.Tests(ctx, pkgs)
	var box, helper string
	box, h.applets, errs[3] = busybox(ctx)
	helper, errs[4] = exec.LookPath(helperName)
	if slices.ContainsFunc(guests, func(g Guest) bool { return g.Root != "" }) {
		errs[5] = h.builder.Containerd(ctx)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	var err error
	h.tools, err = loadedWith(ctx, helper, filepath.Join(h.commands, "lazyerofsd"))
	h.tools = append(h.tools, program{h.init, "/init"}, program{box, "/bin/busybox"}, program{helper, "/bin/" + helperName})
	return err
}
