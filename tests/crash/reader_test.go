package crash

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a reader is told beside roleEnv and dirEnv, the mount. The names of its
// files come on standard input.
const truthEnv = "CRASH_TEST_TRUTH" // directory with the right files

// findings is what a reader reports, as JSON, when it has read everything.
type findings struct {
	Bytes   int64
	Wrong   int64 // blocks that differ
	Errors  int64 // reads that failed
	Longest time.Duration
	First   string // the first trouble
}

func (f *findings) add(o findings) {
	f.Bytes += o.Bytes
	f.Wrong += o.Wrong
	f.Errors += o.Errors
	f.Longest = max(f.Longest, o.Longest)
	if f.First == "" {
		f.First = o.First
	}
}

// reader is a process that reads files of a mount, each byte at least once, and
// compares.
func reader(mount, truth string) error {
	debug.SetPanicOnFault(true) // a page that cannot be had is an error like others
	var names []string
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		names = append(names, in.Text())
	}
	if err := in.Err(); err != nil {
		return err
	}
	var f findings
	for pass := range 2 {
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		if pass > 0 {
			names = names[:len(names)/4] // what is there by now, past the page cache
		}
		for _, name := range names {
			if err := f.file(filepath.Join(mount, name), filepath.Join(truth, name)); err != nil {
				return err
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(f)
}

// file reads one file in one of the ways in which programs do.
func (f *findings) file(path, truth string) error {
	want, err := os.ReadFile(truth)
	if err != nil || len(want) == 0 {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	fd := int(file.Fd())
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	read := func(p []byte, off int64) error { return preadFull(fd, p, off) }
	step, random := 128<<10, false
	switch rand.IntN(4) {
	case 0:
	case 1:
		step, random = 4096, true
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM); err != nil {
			return err
		}
	case 2:
		step, random = 4096*(1+rand.IntN(32)), true
	default:
		step, random = 4096, true
		mapped, err := unix.Mmap(fd, 0, len(want), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Munmap(mapped) }()
		read = func(p []byte, off int64) error { return copyMapped(p, mapped[off:]) }
	}
	f.blocks(path, want, step, random, read)
	return nil
}

// blocks reads and compares all blocks of a file.
func (f *findings) blocks(path string, want []byte, step int, random bool, read func([]byte, int64) error) {
	order := make([]int, (len(want)+step-1)/step)
	for i := range order {
		order[i] = i
	}
	if random {
		order = rand.Perm(len(order))
	}
	got := make([]byte, step)
	for _, i := range order {
		off := i * step
		block := want[off:min(off+step, len(want))]
		begin := time.Now()
		err := read(got[:len(block)], int64(off))
		f.Longest = max(f.Longest, time.Since(begin))
		f.Bytes += int64(len(block))
		switch {
		case err != nil:
			f.Errors++
			f.trouble("%s at %d: %v", path, off, err)
		case !bytes.Equal(got[:len(block)], block):
			f.Wrong++
			f.trouble("%s at %d: wrong bytes, %d of %d are zero", path, off, bytes.Count(got[:len(block)], []byte{0}), len(block))
		}
	}
}

func (f *findings) trouble(format string, args ...any) {
	if f.First == "" {
		f.First = time.Now().Format("15:04:05.000 ") + fmt.Sprintf(format, args...)
	}
}

func preadFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return errors.New("the file is too short")
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// copyMapped copies from a mapping; a fault that fails is EIO.
func copyMapped(p, from []byte) (err error) {
	defer func() {
		if recover() != nil {
			err = syscall.EIO
		}
	}()
	copy(p, from)
	return nil
}
