package vm

import (
	"fmt"
	"slices"
)

// Guest is one kernel and what is to pass in it.
type Guest struct {
	// Name is what `make vm VM=...` calls it, and its folder below .cache/vm.
	Name string
	// Suite is the Debian suite whose kernel it is.
	Suite string
	// KernelOf is the guest whose kernel it is, if not one of its own.
	KernelOf string
	// Root is the Debian suite of a root file system whose systemd becomes the first
	// process; empty means that ours stays it.
	Root string
	// OnDemand says that cachefiles and erofs are rebuilt with on-demand mode; so it
	// is with the guest of KernelOf.
	OnDemand bool
	// Capabilities are the names of package kernel's probes that must say yes; all
	// others must say no.
	Capabilities []string
	// Packages are those whose tests run in it, below the module's root.
	Packages []string
	// Skip matches the tests of Packages that this kernel cannot pass, as -test.skip
	// does; why not is said where it is set.
	Skip string
	// Verity says that the data disk takes fs-verity, which must work there, and that
	// there is dm-verity.
	Verity bool
	// Driver is what the daemon must choose when it mounts an image, which is tried
	// if it is not empty.
	Driver string
}

// probePackage checks Capabilities and runs in every guest; lazyPackage mounts an
// image with Driver.
const (
	probePackage = "tests/vm/probe"
	lazyPackage  = "tests/vm/lazy"
)

// fusePackages are the drivers that need no more than FUSE and EROFS.
var fusePackages = []string{"fs/driver/fusesession", "fs/driver/fuseblock", "fs/driver/fusetree"}

const (
	// withoutPassthrough is the test of what FUSE passthrough does, which is there from
	// Linux 6.9 on.
	withoutPassthrough = "^TestPassthroughHasNoOffset$"
	// withoutChunks are the tests of complete layers that the kernel's EROFS mounts, for
	// which it must know files in chunks, from Linux 5.15 on. Without, they stay on FUSE.
	withoutChunks = "^TestLaws$//^complete_from_the_start$|^TestALayerIsShownAsItIs$|^TestACompleteLayerIsAdopted"
	// withoutFiles are laws that say the same twice where EROFS mounts loop devices only.
	withoutFiles = "^TestLaws$/^(directio|loop)$"
)

// Guests is the table, the ones that CI runs first.
var Guests = []Guest{
	{
		Name: "6.1-ondemand", Suite: "bookworm", OnDemand: true,
		Capabilities: []string{"overlay", "cachefiles-ondemand", "fuse"},
		Packages:     []string{"fs/driver/cachefiles"},
		Driver:       "cachefiles",
	},
	{
		Name: "6.1", Suite: "bookworm", KernelOf: "6.1-ondemand",
		Capabilities: []string{"overlay", "fuse"},
		Driver:       "fuseblock",
	},
	{
		// What takes minutes and is not for CI.
		Name: "6.1-fuse", Suite: "bookworm", KernelOf: "6.1-ondemand",
		Capabilities: []string{"overlay", "fuse"},
		Packages:     fusePackages,
		Skip:         withoutPassthrough + "|" + withoutFiles,
	},
	{
		Name: "5.10", Suite: "bullseye",
		Capabilities: []string{"overlay", "fuse"},
		Packages:     []string{"fs/driver/fusesession", "fs/driver/fusetree"},
		Skip:         withoutPassthrough + "|" + withoutChunks,
		Driver:       "fusetree",
	},
	{
		Name: "6.12", Suite: "trixie",
		Capabilities: []string{"erofs-file-backed", "overlay", "fuse"},
		Packages:     fusePackages,
		Verity:       true,
		Driver:       "fuseblock",
	},
	{
		Name: "7.x", Suite: "sid",
		Capabilities: []string{"erofs-file-backed", "overlay", "fanotify-pre-content", "fuse"},
		Packages:     []string{"fs/driver/fanotify"},
		Verity:       true,
		Driver:       "fanotify",
	},
	{
		Name: "verity", Suite: "sid", KernelOf: "7.x",
		Capabilities: []string{"erofs-file-backed", "overlay", "fanotify-pre-content", "fuse"},
		Packages:     []string{"fs/fsverity", "fs/dmverity", "fs/cache", "fs/driver/dmverity", "tests/vm/verity"},
		Verity:       true,
	},
	{
		Name: "systemd", Suite: "sid", KernelOf: "7.x", Root: "trixie",
		Capabilities: []string{"erofs-file-backed", "overlay", "fanotify-pre-content", "fuse"},
		Packages:     []string{systemdPackage},
	},
}

// owner is the guest whose kernel g runs.
func (g Guest) owner() (Guest, error) {
	if g.KernelOf == "" {
		return g, nil
	}
	i := slices.IndexFunc(Guests, func(o Guest) bool { return o.Name == g.KernelOf && o.KernelOf == "" })
	if i < 0 {
		return g, fmt.Errorf("guest %s: no guest %s has a kernel of its own", g.Name, g.KernelOf)
	}
	return Guests[i], nil
}
