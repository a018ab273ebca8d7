package fdstore

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "fanotify": true, "writer-0a-b": true, "with space": true,
		strings.Repeat("n", MaxName): true,
		"":                           false, strings.Repeat("n", MaxName+1): false,
		"a:b": false, "a\nb": false, "é": false, "\x7f": false,
	} {
		if ok {
			require.NoError(t, CheckName(name), "%q", name)
		} else {
			require.ErrorIs(t, CheckName(name), ErrBadName, "%q", name)
		}
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]Message{
		"":                                   {},
		"FDSTORE=1\nFDPOLL=0\nFDNAME=group":  {Store: true, NoPoll: true, Name: "group"},
		"FDSTOREREMOVE=1\nFDNAME=group\n":    {Remove: true, Name: "group"},
		"BARRIER=1":                          {Barrier: true},
		"READY=1\nSTATUS=a=b\nMAINPID=4":     {Ready: true, Status: "a=b"},
		"STOPPING=1\nWATCHDOG=1\nrubbish":    {Stopping: true, Watchdog: true},
		"FDSTORE=0\nREADY=0\nFDPOLL=1":       {},
		"X_OWN=1\nFDSTORE=1\nFDNAME=a b-c.d": {Store: true, Name: "a b-c.d"},
	} {
		got, err := Parse([]byte(text))
		require.NoError(t, err, "%q", text)
		require.Equal(t, want, got, "%q", text)
	}
	for text, want := range map[string]error{
		"FDNAME=a:b":                                ErrBadName,
		"FDSTOREREMOVE=1":                           ErrBadMessage,
		"FDSTORE=1\nFDSTOREREMOVE=1\nFDNAME=x":      ErrBadMessage,
		"READY=1\x00":                               ErrBadMessage,
		"STATUS=" + strings.Repeat("s", MaxMessage): ErrBadMessage,
	} {
		_, err := Parse([]byte(text))
		require.ErrorIs(t, err, want, "%q", text)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("FDSTORE=1\nFDPOLL=0\nFDNAME=group"))
	f.Add([]byte("FDSTOREREMOVE=1\nFDNAME=writer-1"))
	f.Add([]byte("READY=1\nSTATUS=serving 3 layers\nBARRIER=1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			require.Equal(t, Message{}, m)
			return
		}
		if m.Name != "" {
			require.NoError(t, CheckName(m.Name))
		}
		again, err := Parse([]byte(m.String()))
		require.NoError(t, err)
		require.Equal(t, m, again)
	})
}

// manager is the receiving end of a notify socket.
type manager struct {
	conn *net.UnixConn
	got  chan Message
	fds  chan int
}

// serve answers barriers as a service manager does and hands over the rest.
func (m *manager) serve(done chan<- struct{}) {
	defer close(done)
	buf, oob := make([]byte, MaxMessage), make([]byte, 256)
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		msg, err := Parse(buf[:n])
		if err != nil {
			continue
		}
		cms, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for i := range cms {
			fds, _ := unix.ParseUnixRights(&cms[i])
			for _, fd := range fds {
				if msg.Barrier {
					_ = unix.Close(fd)
					continue
				}
				m.fds <- fd
			}
		}
		if !msg.Barrier {
			m.got <- msg
		}
	}
}

func newManager(t *testing.T) *manager {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	m := &manager{conn: conn, got: make(chan Message, 16), fds: make(chan int, 16)}
	done := make(chan struct{})
	go m.serve(done)
	t.Cleanup(func() { require.NoError(t, conn.Close()); <-done })
	t.Setenv("NOTIFY_SOCKET", path)
	return m
}

func TestStorePutRemove(t *testing.T) {
	m := newManager(t)
	t.Setenv("FDSTORE", "2")
	s, err := New()
	require.NoError(t, err)

	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()

	require.NoError(t, s.Put("data", f))
	require.Equal(t, Message{Store: true, NoPoll: true, Name: "data"}, <-m.got)
	fd := <-m.fds
	_, err = unix.Write(fd, []byte("same file"))
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	b, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	require.Equal(t, "same file", string(b))

	require.NoError(t, s.Put("other", f))
	require.Equal(t, "other", (<-m.got).Name)
	require.NoError(t, unix.Close(<-m.fds))
	require.ErrorIs(t, s.Put("third", f), ErrFull)
	require.ErrorIs(t, s.Put("a:b", f), ErrBadName)
	require.ErrorIs(t, s.Remove(""), ErrBadName)

	require.NoError(t, s.Remove("data"))
	require.Equal(t, Message{Remove: true, Name: "data"}, <-m.got)
	require.NoError(t, s.Put("third", f))
	require.Equal(t, "third", (<-m.got).Name)
	require.NoError(t, unix.Close(<-m.fds))
}

func TestStoreNotify(t *testing.T) {
	m := newManager(t)
	s, err := New()
	require.NoError(t, err)
	require.NoError(t, s.Ready("serving\n3 layers"))
	require.Equal(t, Message{Ready: true, Status: "serving 3 layers"}, <-m.got)
	require.NoError(t, s.Stopping())
	require.Equal(t, Message{Stopping: true}, <-m.got)
	require.NoError(t, s.Watchdog())
	require.Equal(t, Message{Watchdog: true}, <-m.got)
	require.NoError(t, s.Status("x"))
	require.Equal(t, Message{Status: "x"}, <-m.got)
}

func TestNoKeeper(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	_, err := New()
	require.ErrorIs(t, err, ErrNoKeeper)

	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	s, err := New()
	require.NoError(t, err)
	require.ErrorIs(t, s.Put("x", os.Stdin), ErrNotKept)
	t.Setenv("FDSTORE", "8")
	s, err = New()
	require.NoError(t, err)
	require.ErrorIs(t, s.Put("x", os.Stdin), unix.ENOENT)
	require.ErrorIs(t, s.Remove("x"), unix.ENOENT)
	require.Error(t, s.Ready(""))
}

func TestInheritedNeedsOurNumber(t *testing.T) {
	newManager(t)
	s, err := New()
	require.NoError(t, err)
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_FDNAMES", "x")
	t.Setenv(ListenPPID, "1") // meant for another process
	require.Empty(t, s.Inherited())
	require.Empty(t, os.Getenv("LISTEN_FDS"))
}
