package crash

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

var (
	kills      = flag.Int("n", 20, "how often TestKilledUnderReaders kills the daemon")
	longest    = flag.Duration("pause", 200*time.Millisecond, "how long TestKilledUnderReaders lets a daemon go on that has begun to answer, at most")
	driverName = flag.String("driver", fanotify.Name, "the driver that TestKilledUnderReaders tests")
)

const (
	readerCount = 6
	// outage is how long the registry stays dead; the daemon tries for longer.
	outage = 3 * time.Second
	// startTime is about how long a daemon takes to begin, begunWithin what is too
	// long because the registry is dead.
	startTime   = 100 * time.Millisecond
	begunWithin = time.Second
	// outageEvery is how often it dies.
	outageEvery = time.Minute
)

// tally is what happened so far.
type tally struct {
	kills, counted, doubles, reused, outages int

	findings
	begin    time.Time
	told     int     // kills at the last line of progress
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
			w.progress(sum)
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

// progress writes a line now and then.
func (w *world) progress(sum *tally) {
	if sum.kills-sum.told >= 50 {
		sum.told = sum.kills
		w.Logf("%4d of %d kills, %d counted, %s", sum.kills, *kills, sum.counted, time.Since(sum.begin).Round(time.Second))
	}
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

// strike kills the daemon, one of four in the middle of its start, the others in
// the middle of their work, and every tenth time twice in a row.
func (w *world) strike(sum *tally) {
	pid := w.child(sum.dead)
	if rand.IntN(4) > 0 {
		w.begun(sum.previous)
		pause(*longest)
	} else {
		pause(startTime)
	}
	w.kill(sum, pid)
	if sum.kills%10 == 0 {
		sum.doubles++
		pid = w.child(pid)
		pause(50 * time.Millisecond)
		w.kill(sum, pid)
	}
}

// begun waits until the daemon has answered one of the events that its predecessor
// left, or could not for a while. Without that, a machine that is slow to start
// daemons would see them killed before they do anything.
func (w *world) begun(left []int32) {
	for until := time.Now().Add(begunWithin); time.Now().Before(until); {
		now := w.taken()
		if slices.ContainsFunc(left, func(n int32) bool { return !slices.Contains(now, n) }) {
			return
		}
		<-time.After(5 * time.Millisecond)
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
	require.Eventually(w, func() bool { return testenv.Halted(pid) }, time.Minute, 100*time.Microsecond)
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
	for fd, to := range testenv.DescriptorsOf(pid) {
		if strings.Contains(to, fanotify.JournalName) {
			if slices.Contains(numbers, fd) {
				reserved = append(reserved, fd)
			}
			continue
		}
		others = append(others, fd)
	}
	return len(reserved) > 0 && len(others) > 0 && slices.Min(reserved) < slices.Max(others)
}

// child returns the daemon: the supervisor's child, other than old.
func (w *world) child(old int) int {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.Context()), time.Minute)
	defer cancel()
	pid, err := w.daemon.Child(ctx, old)
	require.NoError(w, err)
	return pid
}

// taken returns the numbers of the events that the daemon has taken and not
// answered; requests of FUSE have none, so they count as zeros.
func (w *world) taken() []int32 {
	w.Helper()
	if *driverName != fanotify.Name {
		n, err := w.daemon.TakenFUSE()
		require.NoError(w, err)
		return make([]int32, n)
	}
	list, err := w.daemon.Taken()
	require.NoError(w, err)
	var fds []int32
	for _, t := range list {
		fds = append(fds, t.FD)
	}
	return fds
}
