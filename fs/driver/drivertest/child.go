package drivertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// What a child of the test binary does.
const (
	mapEnv   = "DRIVERTEST_MMAP"  // map this file and hash it
	timeEnv  = "DRIVERTEST_TIME"  // read this file and say how long it took
	blockEnv = "DRIVERTEST_BLOCK" // in reads of so many bytes; 0: 4 KiB in random order
)

// Main runs the tests in a mount namespace of their own, checks for leaked
// goroutines, and is the child that
// faults pages in, or a daemon with one of the harnesses, when told so.
func Main(m *testing.M, harnesses ...Harness) {
	if text := os.Getenv(serveEnv); text != "" {
		answer("", serve(text, harnesses))
	}
	if path := os.Getenv(mapEnv); path != "" {
		sum, err := hashMapped(path)
		answer(fmt.Sprintf("%x", sum), err)
	}
	if path := os.Getenv(timeEnv); path != "" {
		took, err := timeReads(path, os.Getenv(blockEnv))
		answer(took.String(), err)
	}
	if code, done := apart(); done {
		os.Exit(code) //nolint:forbidigo // this is the main of the parent
	}
	if err := dropForeign(); err != nil {
		answer("", err)
	}
	goleak.VerifyTestMain(m)
}

// answer ends a child.
func answer(text string, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // this is the main of the child
	}
	fmt.Fprint(os.Stdout, text)
	os.Exit(0) //nolint:forbidigo // this is the main of the child
}

// timeReads reads a whole file with cold page cache, in blocks of so many
// bytes, or 4 KiB in random order for "0".
func timeReads(path, block string) (time.Duration, error) {
	size, err := strconv.Atoi(block)
	if err != nil {
		return 0, err
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return 0, err
	}
	random := size == 0
	if random {
		size = blockSize
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
			return 0, err
		}
	}
	order := make([]int, int(st.Size())/size)
	if random {
		copy(order, rand.Perm(len(order)))
	} else {
		for i := range order {
			order[i] = i
		}
	}
	buf := make([]byte, size)
	start := time.Now()
	for _, i := range order {
		if _, err := f.ReadAt(buf, int64(i)*int64(size)); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}

// TimeReads is how long another process needs to read the file at path once,
// with cold page cache, in reads of block bytes; 0 means 4 KiB in random order.
// The file's length must be a multiple of that.
func TimeReads(ctx context.Context, path string, block int) (time.Duration, error) {
	out, err := child(ctx, timeEnv+"="+path, blockEnv+"="+strconv.Itoa(block))
	if err != nil {
		return 0, err
	}
	return time.ParseDuration(out)
}

// child runs the test binary as a child.
func child(ctx context.Context, env ...string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	return string(out), err
}

// hashMapped maps a file, touches its pages from the end to the start, so that
// read-ahead does not help, and hashes it.
func hashMapped(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() == 0 {
		return sha256.New().Sum(nil), nil
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	defer func() { _ = unix.Munmap(b) }()
	sum := 0
	for off := len(b) - 1; off >= 0; off -= blockSize {
		sum += int(b[off])
	}
	h := sha256.New()
	if _, err := io.Copy(h, bytes.NewReader(b)); err != nil {
		return nil, fmt.Errorf("hashing %s, %d: %w", path, sum, err)
	}
	return h.Sum(nil), nil
}

// mapped returns the hash of a file as a child process sees it through mmap.
func mapped(ctx context.Context, path string) (string, error) {
	return child(ctx, mapEnv+"="+path)
}

// executed runs a program from a mount. A shell in between executes it: Go
// would hold a processor while the kernel reads the program.
func executed(ctx context.Context, path string, arg string) (string, error) {
	out, err := exec.CommandContext(ctx, "/bin/sh", "-c", `exec "$0" "$1"`, path, arg).Output()
	return string(out), err
}
