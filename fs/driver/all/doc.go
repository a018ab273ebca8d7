// Package all is the one list of drivers, in order of preference. Only the
// composition root imports it.
package all
