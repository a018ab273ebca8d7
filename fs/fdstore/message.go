package fdstore

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// MaxName is the longest name of a stored descriptor in bytes (systemd's
// FDNAME_MAX).
const MaxName = 255

// MaxMessage is the largest datagram a keeper accepts in bytes (systemd's
// NOTIFY_BUFFER_MAX, which is PIPE_BUF).
const MaxMessage = 4096

// ErrBadName reports a name that systemd's store would refuse.
var ErrBadName = errors.New("a descriptor's name is 1 to 255 printable ASCII characters without ':'")

// ErrBadMessage reports a datagram that is not a list of assignments.
var ErrBadMessage = errors.New("malformed notification")

// CheckName returns ErrBadName unless name obeys systemd's rules: printable
// ASCII, no colon because LISTEN_FDNAMES is separated by it, 1 to MaxName bytes.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("name of %d bytes: %w", len(name), ErrBadName)
	}
	for i := range len(name) {
		if c := name[i]; c < ' ' || c > '~' || c == ':' {
			return fmt.Errorf("name %q: %w", name, ErrBadName)
		}
	}
	return nil
}

// Message is one notification: what sd_notify(3) calls a state, as far as a
// keeper acts on it.
type Message struct {
	// Store asks to keep the descriptors that came along (FDSTORE=1).
	Store bool
	// Remove asks to drop what is stored under Name (FDSTOREREMOVE=1).
	Remove bool
	// NoPoll asks not to drop the descriptor when it hangs up (FDPOLL=0).
	NoPoll bool
	// Barrier asks to close the one descriptor that came along once every
	// earlier message was acted on (BARRIER=1).
	Barrier bool
	// Name is FDNAME, valid by CheckName, or empty when there is none.
	Name string
	// Ready, Stopping and Watchdog are READY=1, STOPPING=1 and WATCHDOG=1.
	Ready, Stopping, Watchdog bool
	// Status is the text of STATUS, for people.
	Status string
}

// Parse reads a datagram. As in systemd, assignments that are not known are
// ignored; unlike systemd, a bad name is an error and not replaced by "stored".
func Parse(b []byte) (Message, error) {
	var m Message
	if len(b) > MaxMessage {
		return m, fmt.Errorf("%d bytes, more than %d: %w", len(b), MaxMessage, ErrBadMessage)
	}
	if bytes.IndexByte(b, 0) >= 0 {
		return m, fmt.Errorf("it holds a NUL byte: %w", ErrBadMessage)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		if err := m.assign(key, value); err != nil {
			return Message{}, err
		}
	}
	if m.Remove && m.Name == "" {
		return Message{}, fmt.Errorf("FDSTOREREMOVE without FDNAME: %w", ErrBadMessage)
	}
	if m.Store && m.Remove {
		return Message{}, fmt.Errorf("FDSTORE and FDSTOREREMOVE in one message: %w", ErrBadMessage)
	}
	return m, nil
}

func (m *Message) assign(key, value string) error {
	switch key {
	case "FDSTORE":
		m.Store = value == "1"
	case "FDSTOREREMOVE":
		m.Remove = value == "1"
	case "FDPOLL":
		m.NoPoll = value == "0"
	case "BARRIER":
		m.Barrier = value == "1"
	case "READY":
		m.Ready = value == "1"
	case "STOPPING":
		m.Stopping = value == "1"
	case "WATCHDOG":
		m.Watchdog = value == "1"
	case "STATUS":
		m.Status = value
	case "FDNAME":
		if err := CheckName(value); err != nil {
			return err
		}
		m.Name = value
	}
	return nil
}

// String formats the message as a datagram that Parse reads back.
func (m Message) String() string {
	var b strings.Builder
	flag := func(on bool, s string) {
		if on {
			b.WriteString(s)
			b.WriteByte('\n')
		}
	}
	flag(m.Store, "FDSTORE=1")
	flag(m.Remove, "FDSTOREREMOVE=1")
	flag(m.NoPoll, "FDPOLL=0")
	flag(m.Barrier, "BARRIER=1")
	flag(m.Name != "", "FDNAME="+m.Name)
	flag(m.Ready, "READY=1")
	flag(m.Stopping, "STOPPING=1")
	flag(m.Watchdog, "WATCHDOG=1")
	flag(m.Status != "", "STATUS="+strings.ReplaceAll(m.Status, "\n", " "))
	return strings.TrimSuffix(b.String(), "\n")
}
