package testenv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
)

// Child waits for the daemon that a supervisor runs, other than the process old,
// and returns its process id.
func (d *Daemon) Child(ctx context.Context, old int) (int, error) { return d.proc.child(ctx, old) }

// child waits for a child of p other than old.
func (p *process) child(ctx context.Context, old int) (int, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if pid := childOf(p.pid(), old); pid != 0 {
			return pid, nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return 0, p.exited()
		case <-ctx.Done():
			return 0, fmt.Errorf("the supervisor starts nothing: %w; the log ends with:\n%s", ctx.Err(), p.tail())
		}
	}
}

// childOf returns a child of a process that is not old; 0 when there is none.
func childOf(parent, old int) int {
	for _, pid := range ChildrenOf(parent) {
		if pid != old {
			return pid
		}
	}
	return 0
}

// ChildrenOf returns the children of a process that live.
func ChildrenOf(parent int) (pids []int) {
	// Children belong to the thread that forked them.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	if err != nil {
		return nil // a malformed pattern only
	}
	for _, file := range tasks {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for _, word := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(word); err == nil && ProcessState(pid) != "Z" {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// ProcessState is the state of a process as proc(5) has it, "" when it is gone.
func ProcessState(pid int) string { return stateIn(fmt.Sprintf("/proc/%d/stat", pid)) }

func stateIn(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}

// Halted reports whether no thread of a process that got SIGSTOP runs any more.
// One that waits in the kernel, perhaps for another of them, stays in D.
func Halted(pid int) bool {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return false
	}
	for _, file := range tasks {
		if s := stateIn(file); s != "" && !strings.Contains("TDZX", s) {
			return false
		}
	}
	return true
}

// DescriptorsOf returns what the descriptors of another process refer to, as far
// as they stay open meanwhile.
func DescriptorsOf(pid int) map[int32]string {
	open := map[int32]string{}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return open // it has ended
	}
	for _, e := range entries {
		fd, numErr := strconv.ParseInt(e.Name(), 10, 32)
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
		if errors.Join(numErr, err) == nil {
			open[int32(fd)] = to
		}
	}
	return open
}

// Taken returns the fanotify events that the daemon has taken and not answered:
// they are in memory that its supervisor holds.
func (d *Daemon) Taken() ([]fanotify.Taken, error) { return d.proc.taken() }

func (p *process) taken() (all []fanotify.Taken, err error) {
	err = p.journals(fanotify.JournalName, func(f *os.File) error {
		list, err := fanotify.ReadJournal(f)
		all = append(all, list...)
		return err
	})
	return all, err
}

// TakenFUSE counts the requests of all FUSE connections that the daemon has taken
// and not answered.
func (d *Daemon) TakenFUSE() (all int, err error) {
	err = d.proc.journals("fuse-session", func(f *os.File) error {
		n, err := fusesession.Unanswered(f)
		all += n
		return err
	})
	return all, err
}

// journals opens every memfd of that name which the supervisor p holds.
func (p *process) journals(name string, look func(*os.File) error) error {
	for fd, to := range DescriptorsOf(p.pid()) {
		if !strings.Contains(to, "memfd:"+name) {
			continue
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/fd/%d", p.pid(), fd))
		if errors.Is(err, fs.ErrNotExist) {
			continue // dropped
		}
		if err != nil {
			return fmt.Errorf("opening the journal %s: %w", name, err)
		}
		if err := errors.Join(look(f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
