package standalone

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// User returns the instance of the user who runs this: state in
// $XDG_DATA_HOME/lazyerofs or ~/.local/share/lazyerofs, its socket below
// $XDG_RUNTIME_DIR or, where there is no session, in a directory of the user's own
// below the one for temporary files.
func User() (Instance, error) {
	data := os.Getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(data) { // the XDG base directory specification: ignore it then
		home, err := os.UserHomeDir()
		if err != nil {
			return Instance{}, fmt.Errorf("finding a directory for state, set $XDG_DATA_HOME or --root: %w", err)
		}
		data = filepath.Join(home, ".local", "share")
	}
	run, err := runtimeDir()
	if err != nil {
		return Instance{}, err
	}
	return Instance{Root: filepath.Join(data, "lazyerofs"), Address: filepath.Join(run, "lazyerofs.sock"), Rootless: true}, nil
}

// runtimeDir returns a directory that only this user can enter.
func runtimeDir() (string, error) {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "lazyerofs"), nil
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("lazyerofs-%d", os.Geteuid()))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("making a directory for the socket: %w", err)
	}
	// Anybody may have made it.
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", fmt.Errorf("looking at the directory for the socket: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return "", fmt.Errorf("%s is not a directory that you alone can enter; set $XDG_RUNTIME_DIR to one", dir)
	}
	return dir, nil
}
