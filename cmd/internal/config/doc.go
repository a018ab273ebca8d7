// Package config is the daemon's configuration file, for the daemon and for the
// command line, which looks at it to say what the daemon will do. Parts of it are the
// configuration of the plugins for a containerd that compiles them in.
package config
