package converter

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// Kinds of failures that callers tell apart. They are wrapped in an error whose
// text is one sentence that says what to do.
var (
	// ErrPlatform: the image has none for a platform that was asked for.
	ErrPlatform = errors.New("no image for the platform")
	// ErrCredentials: a registry does not let us in.
	ErrCredentials = errors.New("credentials refused")
	// ErrRefused: a registry let us in and refused what we wanted.
	ErrRefused = errors.New("refused by the registry")
	// ErrNoSpace: a disk or a quota is full.
	ErrNoSpace = errors.New("no space left")
)

// failure is a sentence for people with its kind and cause for programs.
type failure struct {
	text        string
	kind, cause error
}

func (f *failure) Error() string { return f.text }

// Unwrap makes errors.Is find the kind and the cause.
func (f *failure) Unwrap() []error { return []error{f.kind, f.cause} }

// place is a repository, for messages.
type place struct{ host, repo string }

// sentence makes the resolver's errors say what happened and what to do; doing
// is "pull" or "push".
func (p place) sentence(doing string, err error) error {
	if err == nil {
		return nil
	}
	var known *failure
	if errors.As(err, &known) {
		return err
	}
	var status remoteerrors.ErrUnexpectedStatus
	hasStatus := errors.As(err, &status)
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization), errdefs.IsUnauthorized(err), hasStatus && status.StatusCode == http.StatusUnauthorized:
		return &failure{fmt.Sprintf("registry %s does not accept the credentials for a %s of %s; log in with \"docker login %s\", or check the name",
			p.host, doing, p.repo, p.host), ErrCredentials, err}
	case errdefs.IsNotFound(err) && doing == "pull":
		return fmt.Errorf("%w; check the name and the tag", err)
	case hasStatus && status.StatusCode >= http.StatusBadRequest:
		return &failure{fmt.Sprintf("registry %s refuses the %s of %s with %s%s", p.host, doing, p.repo, status.Status, saying(status.Body)), ErrRefused, err}
	}
	return err
}

// maxSaying bounds how much of a registry's words goes into a message.
const maxSaying = 300

// saying extracts the first message of a registry's error document.
func saying(body []byte) string {
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	e := doc.Errors[0]
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, e.Message)
	if text == "" {
		text = e.Code
	}
	return ": " + text[:min(len(text), maxSaying)]
}

// NoSpace makes one sentence of an error about a full disk or quota, which wraps
// ErrNoSpace; others stay as they are. workDir is where temporary data goes, empty for
// the system's place.
func NoSpace(err error, workDir string) error {
	var known *failure
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) || errors.As(err, &known) {
		return err
	}
	if workDir == "" {
		workDir = os.TempDir()
	}
	where, hint := "the disk", "free some"
	ours := true // as most data is
	var path *fs.PathError
	if errors.As(err, &path) {
		where += " that holds " + path.Path
		in, rerr := filepath.Rel(workDir, path.Path)
		ours = rerr == nil && filepath.IsLocal(in)
	}
	if ours {
		hint += ", or name a directory on another disk with --work-dir"
	}
	return &failure{fmt.Sprintf("no space left on %s; %s", where, hint), ErrNoSpace, err}
}
