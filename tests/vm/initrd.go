package vm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is a file of an initramfs.
type entry struct {
	name string
	mode uint32 // with its S_IFMT bits
	body []byte // of a file, or where a link points
}

// writeInitrd writes an initramfs in cpio's "newc" form, which is what a kernel
// unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
func writeInitrd(w io.Writer, entries []entry) error {
	b := bufio.NewWriter(w)
	for i, e := range append(entries, entry{name: "TRAILER!!!"}) {
		size := 110 + len(e.name) + 1
		_, err := fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00%s%s%s",
			i+1, e.mode, 0, 0, 1, 0, len(e.body), 0, 0, 0, 0, len(e.name)+1, 0, e.name, pad(size), e.body, pad(len(e.body)))
		if err != nil {
			return fmt.Errorf("writing an initramfs: %w", err)
		}
	}
	return b.Flush()
}

// pad is what follows n bytes up to a multiple of 4.
func pad(n int) string { return "\x00\x00\x00"[:(4-n%4)%4] }

// buildInitrd writes the initramfs of a guest: the programs, links to busybox, and
// the kernel's modules.
func buildInitrd(file string, k Kernel, programs []program, applets []string) (err error) {
	entries, err := files(k, programs)
	if err != nil {
		return fmt.Errorf("building an initramfs: %w", err)
	}
	for _, a := range applets {
		if a != "busybox" {
			entries = append(entries, entry{name: "bin/" + a, mode: unix.S_IFLNK | 0o777, body: []byte("busybox")})
		}
	}
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("building an initramfs: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return writeInitrd(f, entries)
}

func files(k Kernel, programs []program) ([]entry, error) {
	modules, err := filepath.Glob(filepath.Join(k.Modules, "*.ko"))
	if err != nil {
		return nil, err
	}
	sort.Strings(modules)
	list := slices.Clone(programs)
	for _, m := range modules {
		list = append(list, program{m, filepath.Join(ModuleDir, filepath.Base(m))})
	}
	var entries []entry
	made := map[string]bool{".": true}
	var directory func(string)
	directory = func(name string) {
		if !made[name] {
			made[name] = true
			directory(filepath.Dir(name))
			entries = append(entries, entry{name: name, mode: unix.S_IFDIR | 0o755})
		}
	}
	for _, d := range []string{"bin", "dev", "modules", "root"} {
		directory(d)
	}
	for _, p := range list {
		body, err := os.ReadFile(p.from)
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(p.to, "/")
		directory(filepath.Dir(name))
		entries = append(entries, entry{name: name, mode: unix.S_IFREG | 0o755, body: body})
	}
	return entries, nil
}
