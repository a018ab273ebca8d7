package erofs

import (
	"bytes"
	"fmt"
	"os"
	"testing"
)

// resetPeak sets the peak of resident memory to what is resident now, in KiB
// (proc_pid_clear_refs(5), value 5).
func resetPeak(t testing.TB) int64 {
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	return peak(t)
}

// peak returns VmHWM in KiB.
func peak(t testing.TB) int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := bytes.Cut(b, []byte("VmHWM:"))
	if !ok {
		t.Fatal("no VmHWM")
	}
	var kb int64
	if _, err := fmt.Sscan(string(rest[:min(len(rest), 40)]), &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}
