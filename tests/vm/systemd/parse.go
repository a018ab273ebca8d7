package systemd

import (
	"fmt"
	"strconv"
	"strings"
)

// status is what `systemctl show` says of a unit, as far as it is asked here.
type status struct {
	// Active and Sub are the unit's states, "active" and "running" of a service that
	// is ready.
	Active, Sub string
	// MainPID is 0 when there is no main process.
	MainPID int
	// Stored is the number of descriptors that systemd keeps.
	Stored int
	// Restarts counts what Restart= has brought about.
	Restarts int
}

// statusProperties are those that parseStatus reads.
const statusProperties = "ActiveState,SubState,MainPID,NFileDescriptorStore,NRestarts"

// parseStatus reads the output of `systemctl show -p statusProperties`; what a unit
// of another kind does not have stays 0.
func parseStatus(out string) (status, error) {
	var s status
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return s, fmt.Errorf("systemctl show says %q, which is no assignment", line)
		}
		var err error
		switch name {
		case "ActiveState":
			s.Active = value
		case "SubState":
			s.Sub = value
		case "MainPID":
			s.MainPID, err = strconv.Atoi(value)
		case "NFileDescriptorStore":
			s.Stored, err = strconv.Atoi(value)
		case "NRestarts":
			s.Restarts, err = strconv.Atoi(value)
		}
		if err != nil {
			return s, fmt.Errorf("systemctl show says %q: %w", line, err)
		}
	}
	if s.Active == "" {
		return s, fmt.Errorf("systemctl show says no state: %q", out)
	}
	return s, nil
}

// running says that the service is ready.
func (s status) running() bool { return s.Active == "active" && s.Sub == "running" && s.MainPID > 0 }

// variable finds a variable in an environment as /proc/PID/environ has it.
func variable(environ, name string) (string, bool) {
	for _, e := range strings.Split(environ, "\x00") {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value, true
		}
	}
	return "", false
}
