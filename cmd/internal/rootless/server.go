package rootless

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/containerd/log"
)

// Handler answers requests with s.
func Handler(s Service) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var m Mount
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		d.DisallowUnknownFields()
		if err := d.Decode(&m); err != nil {
			answer(w, r, &Failure{Message: "the request cannot be read: " + err.Error()}, nil)
			return
		}
		answer(w, r, s.Mount(r.Context(), m), nil)
	})
	mux.HandleFunc("DELETE "+path, func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, s.Unmount(r.Context(), r.URL.Query().Get("target")), nil)
	})
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		all, err := s.List(r.Context())
		answer(w, r, err, all)
	})
	return mux
}

// answer sends v, or why there is none.
func answer(w http.ResponseWriter, r *http.Request, err error, v any) {
	status := http.StatusOK
	if err != nil {
		f := new(Failure)
		status = http.StatusUnprocessableEntity
		if !errors.As(err, &f) {
			f, status = &Failure{Message: err.Error()}, http.StatusInternalServerError
		}
		log.G(r.Context()).WithError(err).Warn("refused to " + r.Method + " a mount")
		v = f
	}
	b, err := json.Marshal(v)
	if err != nil {
		log.G(r.Context()).WithError(err).Error("encoding an answer")
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that is gone needs no answer
}
