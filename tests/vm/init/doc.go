// Command init is the first process of a test guest: it carries out a vm.Plan and
// restarts the machine, which ends qemu. It must link statically and needs no file
// of a distribution.
//
// In a guest whose plan names another first process it makes the disk the root and
// becomes that; a unit there starts it again, and then it carries out the plan.
//
// What it cannot do it says in the verdict and goes on, so that the host sees as
// much as there is; it never ends by itself, since a kernel without its first
// process panics.
package main
