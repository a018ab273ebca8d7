package rootless

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// recordExt ends the names of records.
const recordExt = ".json"

func recordName(dir, target string) string {
	sum := sha256.Sum256([]byte(target))
	return filepath.Join(dir, hex.EncodeToString(sum[:16])+recordExt)
}

// save records a mount. After a power loss there is no mount, so a record need not
// survive one.
func save(dir string, m Mount) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("recording the mount at %s: %w", m.Target, err)
	}
	name := recordName(dir, m.Target)
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return fmt.Errorf("recording the mount at %s: %w", m.Target, err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("recording the mount at %s: %w", m.Target, err)
	}
	return nil
}

// forget removes a record; one that is not there is no error.
func forget(dir, target string) error {
	err := os.Remove(recordName(dir, target))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forgetting the mount at %s: %w", target, err)
	}
	return nil
}

// load returns all recorded mounts. A file that holds none is removed: nobody
// can do anything with it.
func load(dir string) ([]Mount, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the records of mounts: %w", err)
	}
	var all []Mount
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		var m Mount
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading the record of a mount: %w", err)
		}
		if !strings.HasSuffix(name, recordExt) || json.Unmarshal(b, &m) != nil || check(m) != nil || recordName(dir, m.Target) != name {
			if err := os.Remove(name); err != nil {
				return nil, fmt.Errorf("removing a damaged record: %w", err)
			}
			continue
		}
		all = append(all, m)
	}
	return all, nil
}
