package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// probeID is the image that EROFS is to ask for; nobody has it.
const probeID = "lazyerofs-probe"

// erofsAsks mounts probeID and refuses it as soon as the bound device is asked for
// it. EROFS without on-demand mode takes the option, or not, and never asks.
func erofsAsks(device *os.File, mount func(fsid string) error) error {
	const what = "mounting EROFS over cachefiles"
	ended := make(chan error, 1)
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer r.Close()
	go func() { // ends with the mount, which ends when its OPEN is answered
		ended <- mount(probeID)
		_ = w.Close() // tells the loop below
	}()
	asked, err := refuseOpens(int(device.Fd()), int(r.Fd()))
	if err != nil {
		// Closing the device lets the mount end.
		return fmt.Errorf("%s: %w", what, err)
	}
	err = <-ended
	if !asked {
		return unsupported(what, err, "the kernel's EROFS has no on-demand mode (CONFIG_EROFS_FS_ONDEMAND); use another driver")
	}
	return nil
}

// mountByID tries to make the superblock; it always fails.
func mountByID(fsid string) error {
	ctx, err := OpenFS("erofs")
	if err != nil {
		return err
	}
	defer ctx.Close()
	if err := ctx.SetString("fsid", fsid); err != nil {
		return err
	}
	return ctx.Create()
}

// refuseOpens answers each OPEN (struct cachefiles_msg {u32 msg_id, opcode, len,
// object_id}, struct cachefiles_open {u32 volume_key_size, cookie_key_size, fd,
// flags}) with ENOENT until the other end of ended is closed; asked says that there was
// one.
func refuseOpens(device, ended int) (asked bool, err error) {
	const header, open = 16, 16
	buf := make([]byte, os.Getpagesize())
	deadline := time.Now().Add(probeWait)
	for {
		fds := []unix.PollFd{{Fd: int32(device), Events: unix.POLLIN}, {Fd: int32(ended), Events: unix.POLLIN}}
		left := time.Until(deadline)
		if left <= 0 {
			return asked, fmt.Errorf("it takes longer than %v", probeWait)
		}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return asked, err
		}
		if fds[0].Revents&unix.POLLIN != 0 {
			n, err := unix.Read(device, buf)
			if err != nil {
				return asked, err
			}
			ne := binary.NativeEndian
			if n < header+open || ne.Uint32(buf[4:]) != 0 {
				continue // CLOSE and READ need no answer here
			}
			asked = true
			_ = unix.Close(int(int32(ne.Uint32(buf[header+8:])))) // nothing was written
			// EINVAL: whoever asked is gone.
			_, err = unix.Write(device, fmt.Appendf(nil, "copen %d,-%d", ne.Uint32(buf), int(unix.ENOENT)))
			if err != nil && !errors.Is(err, unix.EINVAL) {
				return asked, err
			}
			continue
		}
		if fds[1].Revents != 0 {
			return asked, nil
		}
	}
}
