package vm

import "time"

// Where the init of a guest finds things; the host's half is prepare and boot.
const (
	// DiskDevice is the data disk, DiskRoot where it is mounted.
	DiskDevice = "/dev/vda"
	DiskRoot   = "/data"
	// PlanFile is the Plan as JSON, below DiskRoot.
	PlanFile = "plan.json"
	// VerdictPort is the serial port that carries the verdict; the first one is the
	// kernel's console.
	VerdictPort = "/dev/ttyS1"
	// ModuleDir holds the modules in the initramfs, whose names sort in the order of
	// loading.
	ModuleDir = "/modules"
	// SourceRoot is what tests take for the root of the module, below DiskRoot.
	SourceRoot = "src"
)

// Plan is what a guest is to do.
type Plan struct {
	// Nonce marks the lines of the guest's init, so that nothing that a test prints
	// can pass for one.
	Nonce string
	// Init is the program on the disk that becomes the first process, with the disk
	// as its root, and has our init carry out the plan; empty means that our init
	// does so at once.
	Init string
	// Runs are carried out in order, whatever the outcome of earlier ones.
	Runs []Run
}

// Run is one test binary.
type Run struct {
	// Package is the path of the package below the module's root; it names the run
	// and is the working directory.
	Package string
	// Args are those of the test binary, without -test.v and -test.timeout.
	Args []string
	// Env is added to the environment.
	Env []string
	// Timeout bounds the run; 0 means DefaultTimeout.
	Timeout time.Duration
}

// DefaultTimeout is a Run's: ten times what the slowest takes under TCG.
const DefaultTimeout = 20 * time.Minute

// Limit is the Timeout or its default.
func (r Run) Limit() time.Duration {
	if r.Timeout == 0 {
		return DefaultTimeout
	}
	return r.Timeout
}
