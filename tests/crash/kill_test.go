package crash

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
)

var (
	kills      = flag.Int("n", 20, "how often TestKilledUnderReaders kills the daemon")
	driverName = flag.String("driver", fanotify.Name, "the driver that TestKilledUnderReaders tests")
)

const (
	readerCount = 6
	// outage is how long the registry stays dead; the daemon tries for longer.
	outage = 3 * time.Second
	// outageEvery is how often it dies.
	outageEvery = time.Minute
)

// tally is what happened so far.
type tally struct {
	kills, counted, doubles, reused, outages int

	findings
	begin    time.Time
	previous []int32 // numbers in the journal at the last kill
	dead     int     // whom it killed
}

func (t *tally) String() string {
	return fmt.Sprintf("%d kills (%d twice in a row), %d counted, %d with numbers that come again, registry dead %d times, "+
		"%d MB read, %d wrong, %d failed, longest stall %s, %s",
		t.kills, t.doubles, t.counted, t.reused, t.outages,
		t.Bytes/1_000_000, t.Wrong, t.Errors, t.Longest.Round(time.Millisecond), time.Since(t.begin).Round(time.Second))
}

// kill -9 of the daemon at any moment: every read gets the right bytes in the
// end, and none an error.
func TestKilledUnderReaders(t *testing.T) {
	w := newWorld(t, *driverName)
	sum := &tally{begin: time.Now()}
	next := sum.begin.Add(min(outageEvery, time.Duration(*kills)*100*time.Millisecond))
	for sum.kills < *kills {
		w.up()
		r := w.read(readerCount)
		for ended := 0; sum.kills < *kills && ended < readerCount/2; {
			if time.Now().After(next) {
				next = time.Now().Add(outageEvery)
				w.lose(sum)
			}
			w.strike(sum)
			ended += r.ended()
		}
		sum.add(r.wait())
		require.Empty(t, sum.First, sum.String())
		t.Log(sum)
		w.down()
	}
	require.Zero(t, sum.Wrong)
	require.Zero(t, sum.Errors)
	require.GreaterOrEqual(t, sum.counted*10, sum.kills*9, "readers were too rarely in the middle of a read")
	if *driverName == fanotify.Name {
		require.Positive(t, sum.reused, "no number would have come again")
	}
	require.Positive(t, sum.outages)
}

// lose makes the registry die for a while, as long as nothing goes on without it.
func (w *world) lose(sum *tally) {
	sum.outages++
	require.NoError(w, w.gate.shut())
	for until := time.Now().Add(outage); time.Now().Before(until); {
		w.strike(sum)
	}
	require.NoError(w, w.gate.open())
}

// strike kills the daemon some time after it began, in the middle of its start or
// of its work, every tenth time twice in a row.
func (w *world) strike(sum *tally) {
	pid := w.child(sum.dead)
	pause(400 * time.Millisecond)
	w.kill(sum, pid)
	if sum.kills%10 == 0 {
		sum.doubles++
		pid = w.child(pid)
		pause(50 * time.Millisecond)
		w.kill(sum, pid)
	}
}

// pause lasts up to longest.
func pause(longest time.Duration) {
	<-time.After(time.Duration(rand.Int64N(int64(longest))))
}

// kill stops the process to look at what it has taken, and kills it.
func (w *world) kill(sum *tally, pid int) {
	w.Helper()
	require.NoError(w, unix.Kill(pid, unix.SIGSTOP))
	defer func() { _ = unix.Kill(pid, unix.SIGKILL) }() // also when the test fails
	require.Eventually(w, func() bool { return stopped(pid) }, time.Minute, 100*time.Microsecond)
	taken := w.taken()
	if comesAgain(pid, sum.previous) {
		sum.reused++
	}
	require.NoError(w, unix.Kill(pid, unix.SIGKILL))
	sum.kills++
	if len(taken) > 0 {
		sum.counted++
	}
	sum.previous, sum.dead = taken, pid
}

// comesAgain reports whether the process would have given one of the numbers to
// something else, had Reserve not occupied it: the kernel gives the lowest number
// that is free, and a higher one is in use.
func comesAgain(pid int, numbers []int32) bool {
	var reserved, others []int32
	for fd, to := range descriptors(pid) {
		if strings.Contains(to, fanotify.JournalName) {
			if slices.Contains(numbers, fd) {
				reserved = append(reserved, fd)
			}
			continue
		}
		others = append(others, fd)
	}
	return len(reserved) > 0 && slices.Min(reserved) < slices.Max(others)
}

// descriptors returns what the descriptors of a process are.
func descriptors(pid int) map[int32]string {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	open := map[int32]string{}
	for _, link := range links {
		fd, numErr := strconv.ParseInt(filepath.Base(link), 10, 32)
		if to, linkErr := os.Readlink(link); errors.Join(err, numErr, linkErr) == nil {
			open[int32(fd)] = to
		}
	}
	return open
}

// child returns the daemon: the supervisor's child, other than old.
func (w *world) child(old int) (pid int) {
	w.Helper()
	require.Eventually(w, func() bool {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", w.daemon.Pid()))
		require.NoError(w, err)
		for _, file := range tasks {
			b, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			n, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err == nil && n != old && !strings.Contains(state(n), "Z") {
				pid = n
				return true
			}
		}
		return false
	}, time.Minute, time.Millisecond, "the supervisor has no child")
	return pid
}

// state is the state of a process as proc(5) has it; empty when it is gone.
func state(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	first, _, _ := strings.Cut(rest, " ")
	return first
}

// stopped reports whether no thread of the process runs any more. One that waits
// in the kernel for another of them, as in a probe of fanotify, stays in D.
func stopped(pid int) bool {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(tasks) == 0 {
		return state(pid) == ""
	}
	for _, file := range tasks {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if _, rest, _ := strings.Cut(string(b), ") "); rest == "" || !strings.ContainsRune("TDZX", rune(rest[0])) {
			return false
		}
	}
	return true
}

// taken returns the numbers of the events that the daemon has taken and not
// answered. They are in memory that the supervisor holds.
func (w *world) taken() []int32 {
	w.Helper()
	if *driverName != fanotify.Name {
		return waiting(w)
	}
	var fds []int32
	for fd, to := range descriptors(w.daemon.Pid()) {
		if !strings.Contains(to, "memfd:"+fanotify.JournalName) {
			continue
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/fd/%d", w.daemon.Pid(), fd))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		require.NoError(w, err)
		list, err := fanotify.ReadJournal(f)
		require.NoError(w, errors.Join(err, f.Close()))
		for _, t := range list {
			fds = append(fds, t.FD)
		}
	}
	return fds
}

// waiting stands in for the journal where the kernel itself tells how many
// requests of a FUSE connection are not answered.
func waiting(w *world) []int32 {
	files, err := filepath.Glob("/sys/fs/fuse/connections/*/waiting")
	require.NoError(w, err)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if n, _ := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n > 0 {
			return []int32{0}
		}
	}
	return nil
}
