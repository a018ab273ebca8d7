package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrForbidden is the answer of a driver that the configuration rules out.
var ErrForbidden = errors.New("forbidden by the configuration")

// ErrNoDriver reports that no driver works here. Layers are then downloaded.
var ErrNoDriver = errors.New("no driver works here")

// Probe is what Select found out about one driver.
type Probe struct {
	// Driver is its name.
	Driver string
	// Err is nil when it works here, or the reason in words: ErrForbidden, an
	// error that wraps kernel.ErrNotSupported, or an inconclusive one.
	Err error
}

// String is one line for people.
func (p Probe) String() string {
	if p.Err == nil {
		return p.Driver + ": works here"
	}
	return fmt.Sprintf("%s: %v", p.Driver, p.Err)
}

// Select returns the first driver that works with data files in cacheDir, which is
// the choice for this process, followed by those after it that are not forbidden,
// for layers that it fails to mount: they are to be probed before their first use.
// probes says what it found out about each driver that it looked at. drivers is in
// order of preference. force names
// the only driver to consider, if not empty; forbid names drivers to leave out.
// The error wraps ErrNoDriver, ErrForbidden or the context's.
//
// Probes do what they ask about, on the file system that will hold the data;
// versions are never compared. None is made without need.
func Select(ctx context.Context, drivers []Driver, cacheDir, force string, forbid []string) ([]Driver, []Probe, error) {
	if force != "" {
		i := slices.IndexFunc(drivers, func(d Driver) bool { return d.Name() == force })
		if i < 0 {
			return nil, nil, fmt.Errorf("driver %q does not exist; known are %s: %w", force, names(drivers), ErrNoDriver)
		}
		drivers = drivers[i : i+1]
	}
	var probes []Probe
	for i, d := range drivers {
		if err := ctx.Err(); err != nil {
			return nil, probes, fmt.Errorf("selecting a driver: %w", err)
		}
		p := Probe{Driver: d.Name()}
		if slices.Contains(forbid, d.Name()) {
			p.Err = ErrForbidden
		} else {
			p.Err = d.Probe(cacheDir)
		}
		probes = append(probes, p)
		if p.Err == nil {
			return slices.DeleteFunc(slices.Clone(drivers[i:]), func(d Driver) bool {
				return slices.Contains(forbid, d.Name())
			}), probes, nil
		}
	}
	return nil, probes, fmt.Errorf("%w: %s", ErrNoDriver, explain(probes))
}

func names(drivers []Driver) string {
	var list []string
	for _, d := range drivers {
		list = append(list, d.Name())
	}
	return strings.Join(list, ", ")
}

func explain(probes []Probe) string {
	var list []string
	for _, p := range probes {
		list = append(list, p.String())
	}
	return strings.Join(list, "; ")
}
