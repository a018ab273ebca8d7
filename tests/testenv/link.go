package testenv

import (
	"sync"
	"time"
)

// slack is how far a link may lag behind its rate and catch up: timers wake
// late by some 100 us, and without it every late wake-up would cost bandwidth.
const slack = 2 * time.Millisecond

// link is one direction of a shaped line: one queue for all connections.
type link struct {
	bytesPerSecond int64 // 0 is unlimited

	mu   sync.Mutex
	free time.Time // when the line has sent all that was given to it
}

// reserve gives n bytes to the line at time now and returns when the last of
// them has been sent.
func (l *link) reserve(now time.Time, n int) time.Time {
	if l.bytesPerSecond == 0 {
		return now
	}
	took := time.Duration(int64(n) * int64(time.Second) / l.bytesPerSecond)
	l.mu.Lock()
	defer l.mu.Unlock()
	if earliest := now.Add(-slack); l.free.Before(earliest) {
		l.free = earliest
	}
	l.free = l.free.Add(took)
	return l.free
}
