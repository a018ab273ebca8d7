package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/fdstore"
)

// The test binary is also the supervisor and its child: roleEnv says which.
const (
	roleEnv    = "KEEPER_TEST_ROLE"
	childEnv   = "KEEPER_TEST_CHILD"
	controlEnv = "KEEPER_TEST_CONTROL"
	stopEnv    = "KEEPER_TEST_STOP" // the supervisor's StopTimeout
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "supervisor":
		os.Exit(supervisorMain()) //nolint:forbidigo // this is the main of a child
	case "child":
		if err := childMain(); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(3) //nolint:forbidigo // this is the main of a child
		}
		os.Exit(0) //nolint:forbidigo // this is the main of a child
	}
	goleak.VerifyTestMain(m)
}

func supervisorMain() int {
	_ = os.Setenv(roleEnv, "child")
	stop, err := time.ParseDuration(os.Getenv(stopEnv))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 5
	}
	err = Run(context.Background(), []string{os.Getenv(childEnv)}, Options{Dir: os.TempDir(), StopTimeout: stop})
	if leak := leaked(); leak != nil {
		fmt.Fprintln(os.Stderr, leak)
		return 9
	}
	switch {
	case errors.Is(err, ErrNeverReady):
		return 4
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 5
	}
	return 0
}

// leaked says which goroutines stay.
func leaked() (leak error) {
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		if leak = goleak.Find(goleak.IgnoreTopFunction("os/signal.loop")); leak == nil { // it waits a little itself
			return nil
		}
	}
	return leak
}

// childMain counts its generations in a memfd that lives in the store.
func childMain() error {
	control := os.Getenv(controlEnv)
	if order(control) == "refuse" {
		return errors.New("told to fail")
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	store, err := fdstore.New()
	if err != nil {
		return err
	}
	n, err := generation(store)
	if err != nil {
		return err
	}
	if order(control) == "crash" {
		return errors.Join(store.Status("crash"), errors.New("told to crash after storing"))
	}
	status := fmt.Sprintf("gen %d pid %d version %s socket %s", n, os.Getpid(),
		os.Getenv("VERSION"), os.Getenv("NOTIFY_SOCKET"))
	if err := store.Ready(status); err != nil {
		return err
	}
	for {
		<-term
		switch order(control) {
		case "ignore":
			continue
		case "clear":
			return store.Remove("count")
		}
		return nil
	}
}

func order(control string) string {
	b, err := os.ReadFile(control)
	if err != nil {
		return ""
	}
	return string(b)
}

func generation(store *fdstore.Store) (int, error) {
	held := store.Inherited()["count"]
	if len(held) == 0 {
		fd, err := unix.MemfdCreate("count", unix.MFD_CLOEXEC)
		if err != nil {
			return 0, err
		}
		f := os.NewFile(uintptr(fd), "count")
		if _, err := f.WriteAt([]byte("1"), 0); err != nil {
			return 0, err
		}
		// Twice: the same open file is kept once.
		return 1, errors.Join(store.Put("count", f), store.Put("count", f))
	}
	if len(held) != 1 {
		return 0, fmt.Errorf("inherited %d descriptors", len(held))
	}
	b := make([]byte, 1)
	if _, err := held[0].ReadAt(b, 0); err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(string(b))
	if err != nil {
		return 0, err
	}
	_, err = held[0].WriteAt([]byte(strconv.Itoa(n+1)), 0)
	return n + 1, err
}

// rig is one supervisor under test, watched through an outer notify socket.
type rig struct {
	t       *testing.T
	cmd     *exec.Cmd
	log     string // what the supervisor wrote
	outer   *net.UnixConn
	control string
	script  string
}

// newRig gives children as long to stop as a slow machine may need.
func newRig(t *testing.T, first string) *rig { return newRigStopping(t, first, 30*time.Second) }

func newRigStopping(t *testing.T, first string, timeout time.Duration) *rig {
	dir := t.TempDir()
	addr := &net.UnixAddr{Name: filepath.Join(dir, "outer"), Net: "unixgram"}
	outer, err := net.ListenUnixgram("unixgram", addr)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, outer.Close()) })
	r := &rig{t: t, outer: outer, log: filepath.Join(dir, "log"), control: filepath.Join(dir, "control"), script: filepath.Join(dir, "child")}
	r.tell(first)
	r.install("1")
	self, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute) // no test needs so long
	t.Cleanup(cancel)
	r.cmd = exec.CommandContext(ctx, self)
	r.cmd.Env = append(os.Environ(), roleEnv+"=supervisor", childEnv+"="+r.script,
		controlEnv+"="+r.control, stopEnv+"="+timeout.String(), "NOTIFY_SOCKET="+addr.Name)
	out, err := os.Create(r.log)
	require.NoError(t, err)
	r.cmd.Stderr = out
	require.NoError(t, errors.Join(r.cmd.Start(), out.Close()))
	t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			_ = r.cmd.Process.Kill()
			_ = r.cmd.Wait()
		}
		if t.Failed() {
			t.Log(r.stderr())
		}
	})
	return r
}

// install replaces the binary on disk by another build.
func (r *rig) install(version string) {
	self, err := os.Executable()
	require.NoError(r.t, err)
	text := fmt.Sprintf("#!/bin/sh\nVERSION=%s exec %s\n", version, self)
	tmp := r.script + ".new"
	require.NoError(r.t, os.WriteFile(tmp, []byte(text), 0o755))
	require.NoError(r.t, os.Rename(tmp, r.script))
}

func (r *rig) tell(order string) {
	require.NoError(r.t, os.WriteFile(r.control, []byte(order), 0o600))
}

// next returns the next notification that holds text.
func (r *rig) next(text string) fdstore.Message {
	r.t.Helper()
	buf := make([]byte, fdstore.MaxMessage)
	require.NoError(r.t, r.outer.SetReadDeadline(time.Now().Add(20*time.Second)))
	for {
		n, err := r.outer.Read(buf)
		require.NoError(r.t, err, "waiting for %q", text)
		if strings.Contains(string(buf[:n]), text) {
			m, err := fdstore.Parse(buf[:n])
			require.NoError(r.t, err)
			return m
		}
	}
}

// up waits for generation gen and returns its process id and notify socket.
func (r *rig) up(gen int, version string) (pid int, socket string) {
	r.t.Helper()
	m := r.next(fmt.Sprintf("STATUS=gen %d ", gen))
	require.True(r.t, m.Ready)
	require.Equal(r.t, gen, field(r.t, m.Status, 1))
	f := strings.Fields(m.Status)
	require.Equal(r.t, version, f[5])
	return field(r.t, m.Status, 3), f[7]
}

func field(t *testing.T, status string, i int) int {
	n, err := strconv.Atoi(strings.Fields(status)[i])
	require.NoError(t, err)
	return n
}

func (r *rig) stderr() string {
	b, err := os.ReadFile(r.log)
	require.NoError(r.t, err)
	return string(b)
}

// child waits for a child of the supervisor other than old.
func (r *rig) child(old int) (pid int) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", r.cmd.Process.Pid))
		require.NoError(r.t, err)
		for _, file := range tasks { // of the thread that forked
			b, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n != old {
				pid = n
				return true
			}
		}
		return false
	}, 20*time.Second, 200*time.Microsecond)
	return pid
}

func (r *rig) signal(s os.Signal) { require.NoError(r.t, r.cmd.Process.Signal(s)) }

func (r *rig) exit() int {
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		require.NoError(r.t, err)
	}
	return r.cmd.ProcessState.ExitCode()
}

func TestLifeOfASupervisor(t *testing.T) {
	r := newRig(t, "")
	pid, _ := r.up(1, "1")
	scoreFile := fmt.Sprintf("/proc/%d/oom_score_adj", r.cmd.Process.Pid)
	score, err := os.ReadFile(scoreFile)
	require.NoError(t, err)
	if os.WriteFile(scoreFile, []byte(oomScore), 0) == nil { // where root may
		require.Equal(t, oomScore+"\n", string(score))
	}

	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	pid, _ = r.up(2, "1") // the descriptor outlived kill -9

	r.install("2")
	r.signal(unix.SIGHUP)
	next, _ := r.up(3, "2") // another build, same descriptor
	require.NotEqual(t, pid, next)

	r.signal(unix.SIGTERM)
	r.next("STOPPING=1")
	r.next("1 stored descriptors guard mounted layers")
	require.ErrorIs(t, unix.Kill(next, 0), unix.ESRCH)

	r.signal(unix.SIGTERM) // told again: it still stays
	r.next("1 stored descriptors guard mounted layers")

	r.signal(unix.SIGUSR2)
	r.up(4, "2")
	r.tell("clear")
	r.signal(unix.SIGINT)
	require.Zero(t, r.exit())
}

func TestNeverReady(t *testing.T) {
	r := newRig(t, "refuse")
	require.Equal(t, 4, r.exit())
}

func TestCrashWithStoredDescriptors(t *testing.T) {
	r := newRig(t, "crash")
	// It stores, then exits at once, again and again: restarts, never gives up.
	r.next("STATUS=crash")
	r.next("STATUS=crash")
	r.tell("")
	m := r.next("READY=1")
	require.GreaterOrEqual(t, field(t, m.Status, 1), 3)
	r.tell("clear")
	r.signal(unix.SIGTERM)
	require.Zero(t, r.exit())
}

func TestStrangerStoresNothing(t *testing.T) {
	r := newRig(t, "")
	_, socket := r.up(1, "1")
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("FDSTORE", "8")
	store, err := fdstore.New()
	require.NoError(t, err)
	require.NoError(t, store.Put("foreign", os.Stdin)) // read, and refused
	r.tell("clear")
	r.signal(unix.SIGTERM)
	require.Zero(t, r.exit()) // it would stay if anything were stored
	_, err = os.Stat(filepath.Dir(socket))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestStopTimeoutKills(t *testing.T) {
	// Short enough to be waited for, long enough for the second child to end by itself.
	r := newRigStopping(t, "", 3*time.Second)
	pid, _ := r.up(1, "1")
	r.tell("ignore")
	r.signal(unix.SIGTERM)
	r.next("1 stored descriptors guard mounted layers")
	require.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH)
	r.tell("")
	r.signal(unix.SIGHUP)
	r.up(2, "1")
	r.tell("clear")
	r.signal(unix.SIGTERM)
	require.Zero(t, r.exit())
}

func TestShelf(t *testing.T) {
	s := shelf{max: 2}
	pipe := func() (int, int) {
		var p [2]int
		require.NoError(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
		return p[0], p[1]
	}
	a, b := pipe()
	dup, err := unix.FcntlInt(uintptr(a), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, s.apply(fdstore.Message{Store: true, Name: "a"}, []int{a}))
	require.NoError(t, s.apply(fdstore.Message{Store: true, Name: "a"}, []int{dup}))
	require.NoError(t, s.apply(fdstore.Message{Store: true, Name: "b"}, []int{b}))
	fds, names := s.fds()
	require.Equal(t, "a:b", names)
	require.Equal(t, []uintptr{uintptr(a), uintptr(b)}, fds)

	c, d := pipe()
	require.ErrorIs(t, s.apply(fdstore.Message{Store: true, Name: "c"}, []int{c}), errFull)
	require.NoError(t, s.apply(fdstore.Message{Remove: true, Name: "a"}, nil))
	require.NoError(t, s.apply(fdstore.Message{Barrier: true}, []int{d}))
	_, names = s.fds()
	require.Equal(t, "b", names)
	require.NoError(t, s.close())
	for _, fd := range []int{a, b, c, d, dup} {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.ErrorIs(t, err, unix.EBADF)
	}
}
