// Package driver makes kernel reads of missing ranges reach us.
//
// It holds what drivers share and what callers see of them: the interfaces, the
// one translation of errors into errnos, and the choice of a driver by probing.
// A driver is one folder below this one that passes drivertest; folder all
// lists them for the composition root.
//
// Laws that every driver keeps, and drivertest checks: a read returns the right
// bytes or an error, never other bytes; an error is not sticky, the next read
// asks again; once a layer is complete the driver is out of the way; nothing
// that serves a mount goes away before the last superblock does.
//
// Deadlock: this process must never read from a lazy mount that it serves, by
// whatever way (its binary, certificates, resolver files, a path walk below the
// mount's root): the read waits for this very process.
package driver
