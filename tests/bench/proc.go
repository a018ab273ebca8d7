package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// child returns the one child of a supervisor.
func child(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, fmt.Errorf("finding the daemon: %w", err)
	}
	if all := strings.Fields(string(b)); len(all) == 1 {
		return strconv.Atoi(all[0])
	}
	// The supervisor may have started it from another thread.
	var found []int
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, fmt.Errorf("finding the daemon: %w", err)
	}
	for _, t := range threads {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(f)
			if err != nil {
				return 0, fmt.Errorf("finding the daemon: %w", err)
			}
			found = append(found, n)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("finding the daemon: process %d has the children %d", pid, found)
	}
	return found[0], nil
}

// memoryOf reads the sizes of a process, and what it has computed so far.
func memoryOf(pid int) (memoryRow, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memoryRow{}, fmt.Errorf("reading the size of the daemon: %w", err)
	}
	row, err := parseStatus(string(b))
	if err != nil {
		return row, err
	}
	b, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return row, fmt.Errorf("reading the time of the daemon: %w", err)
	}
	row.CPU, err = parseTimes(string(b))
	return row, err
}

// tick is the unit of times in /proc (USER_HZ of every architecture that Go knows).
const tick = 10 * time.Millisecond

// parseTimes returns the sum of utime and stime (proc(5)) of a process.
func parseTimes(stat string) (time.Duration, error) {
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("the status of the daemon has %d fields", len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the time of the daemon: %w", err)
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the time of the daemon: %w", err)
	}
	return time.Duration(user+system) * tick, nil
}

func parseStatus(status string) (memoryRow, error) {
	var row memoryRow
	fields := map[string]*int{"VmRSS": &row.Resident, "VmHWM": &row.Peak, "RssAnon": &row.Anon}
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		to := fields[key]
		if to == nil {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		if err != nil {
			return row, fmt.Errorf("reading %s: %w", key, err)
		}
		*to = n
		delete(fields, key)
	}
	if len(fields) > 0 {
		return row, errors.New("the status of the daemon does not give its size")
	}
	return row, nil
}

// heap stores the heap profile of the daemon whose metrics are at socket.
func heap(ctx context.Context, socket, file string) error {
	return fetchProfile(ctx, socket, "heap", file)
}

// fetchProfile stores a profile of the daemon whose metrics are at socket; name is
// that of net/http/pprof, with its query.
func fetchProfile(ctx context.Context, socket, name, file string) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/debug/pprof/"+name, nil)
	if err != nil {
		return fmt.Errorf("asking for the profile %s: %w", name, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("asking for the profile %s: %w", name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking for the profile %s: %s", name, resp.Status)
	}
	out, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("storing the profile %s: %w", name, err)
	}
	_, err = io.Copy(out, resp.Body)
	return errors.Join(err, out.Close())
}
