package drivertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childEnv names the file that a child of the test binary maps and hashes.
const childEnv = "DRIVERTEST_MMAP"

// Main runs the tests, checks for leaked goroutines, and is the child that
// faults pages in when told so.
func Main(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		sum, err := hashMapped(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // this is the main of the child
		}
		fmt.Fprintf(os.Stdout, "%x", sum)
		os.Exit(0) //nolint:forbidigo // this is the main of the child
	}
	goleak.VerifyTestMain(m)
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
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	out, err := cmd.Output()
	return string(out), err
}

// executed runs a program from a mount. A shell in between executes it: Go
// would hold a processor while the kernel reads the program.
func executed(ctx context.Context, path string, arg string) (string, error) {
	out, err := exec.CommandContext(ctx, "/bin/sh", "-c", `exec "$0" "$1"`, path, arg).Output()
	return string(out), err
}
