package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/dmverity"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/fsverity"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// Check is one thing that was tried.
type Check struct {
	Name string `json:"name"`
	// OK says that it works here, just now.
	OK bool `json:"ok"`
	// Detail is why not and what to do, or what was found.
	Detail string `json:"detail,omitempty"`
}

// Report is everything that was found.
type Report struct {
	Kernel     string `json:"kernel"`
	CacheDir   string `json:"cacheDir"`
	FileSystem string `json:"fileSystem"`
	// Kernel capabilities, in the order in which they would be used.
	Capabilities []Check `json:"capabilities"`
	Drivers      []Check `json:"drivers"`
	// Integrity is what the kernel can check on every read of a complete layer, when
	// the daemon's [verity] asks for it.
	Integrity []Check `json:"integrity"`
	// Driver is the one that would be chosen; empty: layers are downloaded.
	Driver string `json:"driver"`
	// Forced is the only one that the configuration allows, if it names one.
	Forced string `json:"forced,omitempty"`
	// Setup is what a node needs around the kernel.
	Setup []Check `json:"setup"`
}

// Config says where to look.
type Config struct {
	// CacheDir is the directory of the data files. Where it does not exist yet,
	// its nearest existing parent is probed.
	CacheDir string
	// Address is the daemon's socket.
	Address string
	// Drivers in order of preference.
	Drivers []driver.Driver
	// Force and Forbid are what the daemon's configuration says of drivers, as
	// driver.Select takes them. Those that are forbidden are not probed.
	Force  string
	Forbid []string
	// Configuration is why the daemon would refuse its configuration, or nil.
	Configuration error
	// ContainerdConfig is containerd's configuration file.
	ContainerdConfig string
}

// Run tries everything. The error is about the machine that could not be
// asked, never about something that does not work.
func Run(ctx context.Context, c Config) (*Report, error) {
	dir, err := existing(c.CacheDir)
	if err != nil {
		return nil, err
	}
	r := &Report{CacheDir: dir}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("asking for the kernel's release: %w", err)
	}
	r.Kernel = unix.ByteSliceToString(uts.Release[:])
	if r.FileSystem, err = fsName(dir); err != nil {
		return nil, err
	}
	for _, c := range kernel.Report(dir) {
		r.Capabilities = append(r.Capabilities, check(c.Name, c.Err))
	}
	if err := r.drivers(ctx, c, dir); err != nil {
		return nil, err
	}
	r.Integrity = []Check{check("dm-verity", dmverity.Probe(dir)), check("fs-verity", fsverity.Probe(dir))}
	r.Setup = setup(c)
	return r, nil
}

// drivers asks each driver, also those that the daemon would not ask because it
// has one already.
func (r *Report) drivers(ctx context.Context, c Config, dir string) error {
	r.Forced = c.Force
	for _, d := range c.Drivers {
		_, probes, err := driver.Select(ctx, []driver.Driver{d}, dir, "", c.Forbid)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if len(probes) > 0 {
			err = probes[0].Err // without the sentence about all drivers
		}
		r.Drivers = append(r.Drivers, check(d.Name(), err))
		if err == nil && r.Driver == "" && (c.Force == "" || c.Force == d.Name()) {
			r.Driver = d.Name()
		}
	}
	return nil
}

func check(name string, err error) Check {
	if err == nil {
		return Check{Name: name, OK: true}
	}
	return Check{Name: name, Detail: err.Error()}
}

// existing returns dir or its nearest parent that exists: the probe must run on
// the file system that will hold the data, also before the first start.
func existing(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", dir, err)
	}
	for {
		st, err := os.Stat(dir)
		if err == nil && st.IsDir() {
			return dir, nil
		}
		if err == nil {
			return "", fmt.Errorf("cache directory %s is a file; choose another with --root", dir)
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("finding the cache directory: %w", err)
		}
		dir = filepath.Dir(dir)
	}
}

// fsName returns the type of the file system that holds dir.
func fsName(dir string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", fmt.Errorf("asking for the file system of %s: %w", dir, err)
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4", nil
	case unix.XFS_SUPER_MAGIC:
		return "xfs", nil
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs", nil
	case unix.TMPFS_MAGIC:
		return "tmpfs", nil
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs", nil
	}
	return fmt.Sprintf("type %#x", st.Type), nil
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) error {
	p := &printer{w: w}
	p.printf("kernel %s, cache directory %s (%s)\n", r.Kernel, r.CacheDir, r.FileSystem)
	p.section("kernel", r.Capabilities)
	p.section("drivers", r.Drivers)
	p.section("integrity of complete layers, off unless configured", r.Integrity)
	p.section("set-up", r.Setup)
	switch {
	case r.Driver != "" && r.Forced != "":
		p.printf("\nlazy layers are served by the %s driver, the only one that the configuration allows\n", r.Driver)
	case r.Driver != "":
		p.printf("\nlazy layers are served by the %s driver\n", r.Driver)
	case r.Forced != "":
		p.printf("\nthe configuration allows only the driver %q, which does not work here: layers are downloaded whole and unpacked to EROFS\n", r.Forced)
	default:
		p.printf("\nno driver works here: layers are downloaded whole and unpacked to EROFS\n")
	}
	return p.err
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) section(title string, checks []Check) {
	p.printf("\n%s\n", title)
	for _, c := range checks {
		mark := "no "
		if c.OK {
			mark = "yes"
		}
		p.printf("  %s  %s", mark, c.Name)
		if c.Detail != "" {
			p.printf(": %s", c.Detail)
		}
		p.printf("\n")
	}
}
