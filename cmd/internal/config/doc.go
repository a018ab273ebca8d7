// Package config is the daemon's configuration file, for the daemon and for the
// command line, which looks at it to say what the daemon will do.
package config
