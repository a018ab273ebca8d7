package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is what results were measured on. Registry, line, daemon and readers
// share its processors.
type machine struct {
	Date      time.Time `json:"date"`
	Kernel    string    `json:"kernel"`
	CPUs      int       `json:"cpus"`
	Processor string    `json:"processor"`
	Go        string    `json:"go"`
	Version   string    `json:"version"` // of lazyerofs
	Load      []string  `json:"load"`    // /proc/loadavg before, and after
}

func newMachine() (machine, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return machine{}, fmt.Errorf("asking for the kernel's version: %w", err)
	}
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return machine{}, fmt.Errorf("asking for the processor: %w", err)
	}
	m := machine{
		Date: time.Now().UTC().Truncate(time.Second), Kernel: unix.ByteSliceToString(u.Release[:]),
		CPUs: runtime.NumCPU(), Processor: model(string(cpus)), Go: runtime.Version(), Version: revision(),
	}
	return m, m.noteLoad()
}

// noteLoad adds the load average of now.
func (m *machine) noteLoad() error {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return fmt.Errorf("asking for the load: %w", err)
	}
	m.Load = append(m.Load, strings.TrimSpace(string(b)))
	return nil
}

// model finds the processor's name in cpuinfo.
func model(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// revision is what the source tree is at, with "-dirty" when it was changed; empty
// outside a repository.
func revision() string {
	out, err := exec.CommandContext(context.Background(), "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// store writes a report under its date, and its kind unless that is "".
func store(dir string, date time.Time, kind string, report any) error {
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the results: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("storing the results: %w", err)
	}
	name := strings.ReplaceAll(date.Format(time.RFC3339), ":", "")
	if kind != "" {
		name += "-" + kind
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("storing the results: %w", err)
	}
	return nil
}
