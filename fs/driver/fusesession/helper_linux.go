package fusesession

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// helperName is the program of libfuse that mounts for ordinary users, as
// distributions install it, set-user-ID root.
const helperName = "fusermount3"

// helped lets fusermount3 open /dev/fuse and mount; it sends the descriptor
// over a socket that its environment names.
func (b *birth) helped(ctx context.Context) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making a socket for %s: %w", helperName, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), helperName), os.NewFile(uintptr(fds[1]), helperName)
	defer ours.Close()
	defer theirs.Close()
	err = helper(ctx, []*os.File{theirs}, "-o", b.helperOptions(), "--", b.mc.Target)
	if err != nil {
		return err
	}
	b.s.helper, b.s.target = true, b.mc.Target
	if b.dev, err = receive(ours); err != nil {
		return fmt.Errorf("taking /dev/fuse from %s: %w", helperName, err)
	}
	if err := b.keep(); err != nil {
		return err
	}
	root, err := openRoot(b.mc.Target)
	if err != nil {
		return err
	}
	b.s.agreed.conn, err = connOf(root)
	return errors.Join(err, root.Close())
}

// openRoot opens the directory without asking the server.
func openRoot(target string) (*os.File, error) {
	fd, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", target, err)
	}
	return os.NewFile(uintptr(fd), target), nil
}

func (b *birth) helperOptions() string {
	opts := []string{"ro", fmt.Sprintf("max_read=%d", b.s.conf.MaxRead)}
	for name, on := range map[string]bool{
		"allow_other": b.mc.AllowOther, "default_permissions": b.mc.DefaultPermissions,
		"suid": b.mc.Suid, "dev": b.mc.Dev,
	} {
		if on {
			opts = append(opts, name)
		}
	}
	escape := strings.NewReplacer(`\`, `\\`, ",", `\,`)
	if b.mc.Source != "" {
		opts = append(opts, "fsname="+escape.Replace(b.mc.Source))
	}
	if b.mc.Subtype != "" {
		opts = append(opts, "subtype="+escape.Replace(b.mc.Subtype))
	}
	return strings.Join(opts, ",")
}

// helper runs fusermount3.
func helper(ctx context.Context, extra []*os.File, args ...string) error {
	cmd := exec.CommandContext(ctx, helperName, args...)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = extra
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", helperName, err, strings.TrimSpace(words.String()))
	}
	return nil
}

// receive takes one descriptor from a socket.
func receive(sock *os.File) (*os.File, error) {
	var b [4]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(sock.Fd()), b[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
		}
	}
	return nil, errors.New("no descriptor came")
}

// Unmount detaches the mount from its target; the connection lives until the
// last user of the file system is gone, see Done. EINVAL says that nothing is
// mounted there.
func (s *Session) Unmount() error {
	if s.target == "" {
		return nil
	}
	return unmount(s.target)
}

func unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		return helper(context.Background(), nil, "-u", "-z", "--", target)
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", target, err)
	}
	return nil
}
