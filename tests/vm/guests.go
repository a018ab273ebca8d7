package vm

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
	// OnDemand says that cachefiles and erofs are rebuilt with on-demand mode.
	OnDemand bool
	// Capabilities are the names of package kernel's probes that must say yes; all
	// others must say no.
	Capabilities []string
	// Packages are those whose tests run in it, below the module's root.
	Packages []string
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

// Guests is the table, the ones that CI runs first.
var Guests = []Guest{
	{
		Name: "6.1-ondemand", Suite: "bookworm", OnDemand: true,
		Capabilities: []string{"overlay", "cachefiles-ondemand", "fuse"},
		Packages:     []string{"fs/driver/cachefiles"},
		Driver:       "cachefiles",
	},
	{
		Name: "6.1", Suite: "bookworm",
		Capabilities: []string{"overlay", "fuse"},
		Driver:       "fuseblock",
	},
	{
		Name: "5.10", Suite: "bullseye",
		Capabilities: []string{"overlay", "fuse"},
	},
	{
		Name: "6.12", Suite: "trixie",
		Capabilities: []string{"erofs-file-backed", "overlay", "fuse"},
	},
	{
		Name: "7.x", Suite: "sid",
		Capabilities: []string{"erofs-file-backed", "overlay", "fanotify-pre-content", "fuse"},
		Packages:     []string{"fs/driver/fanotify"},
		Driver:       "fanotify",
	},
	{
		Name: "systemd", Suite: "sid", KernelOf: "7.x", Root: "trixie",
		Capabilities: []string{"erofs-file-backed", "overlay", "fanotify-pre-content", "fuse"},
		Packages:     []string{systemdPackage},
	},
}

// kernel is the name of the folder of its kernel.
func (g Guest) kernel() string {
	if g.KernelOf != "" {
		return g.KernelOf
	}
	return g.Name
}
